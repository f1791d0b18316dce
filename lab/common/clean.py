# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.common.clean`: remove all products of the lab."""

import shutil

from lab.common.cache import cache_dir
from lab.common.steps import say

if __name__ == "__main__":
    directory = cache_dir()
    shutil.rmtree(directory)
    say(f"removed {directory}")
