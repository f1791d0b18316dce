# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.kernel`: build the lab's kernel and print its path."""

import sys

from lab.common.command import FAILED, require_root
from lab.common.steps import LabError, say
from lab.kernel.build import build_kernel

if __name__ == "__main__":
    try:
        require_root()
        kernel = build_kernel()
    except LabError as error:
        say(f"failed: {error}")
        sys.exit(FAILED)
    print(f"{kernel.release}\n{kernel.image}")
