# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.amd`: run ipitrace on an emulated AMD host and print its tables."""

import sys

from lab.amd.boot import boot
from lab.common.command import main

sys.exit(main("amd", boot))
