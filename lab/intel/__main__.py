# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.intel`: run ipitrace on an emulated Intel host and print its tables."""

import sys

from lab.common.command import main
from lab.intel.boot import boot

sys.exit(main("intel", boot))
