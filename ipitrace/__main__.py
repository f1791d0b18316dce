# SPDX-License-Identifier: Apache-2.0
"""`python -m ipitrace`."""

from ipitrace.cli import main

main()
