# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.hotplug`: take a CPU offline in the emulated AMD host while ipitrace measures."""

import argparse
import sys
from pathlib import Path

from lab.amd.boot import boot
from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.session import Request, run_on
from lab.common.steps import LabError, say

_JOB = Path(__file__).with_name("job.sh")


def main() -> int:
    """Return the exit code; the results of the run are files."""
    parser = argparse.ArgumentParser(prog="python -m lab.hotplug", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "hotplug").resolve()
    try:
        require_root()
        run_on(
            boot,
            Request(rootfs.SUITE, "sh /job/job.sh", (), output, files={"job.sh": _JOB}),
        )
    except LabError as error:
        say(f"failed: {error}")
        return FAILED
    print((output / "run.err").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
