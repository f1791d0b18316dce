# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.guest`: build ipitrace_storm for every kernel in SUITES; fail on any warning."""

import sys

from lab.common.steps import LabError, say
from lab.guest.module import SUITES, build_module


def main() -> int:
    """Return the exit code."""
    failed = False
    for suite in SUITES:
        try:
            build = build_module(suite)
        except LabError as error:
            say(f"failed: {error}")
            failed = True
            continue
        failed |= bool(build.warnings)
        print(f"{suite}: {build.release}: {build.warnings or 'no warnings'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
