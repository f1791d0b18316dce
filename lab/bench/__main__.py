# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.bench`: what watching adds to an IPI, on the emulated Intel host."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from bench.added import RESULT, Added
from bench.report import write_json
from lab.bench.host import root_image, versions
from lab.bench.recorded import read_recorded
from lab.bench.table import reports
from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.job import CHECKOUT
from lab.common.session import Request, run_on
from lab.common.steps import LabError, say
from lab.intel.boot import boot

MODULES = ("__init__", "added", "storms", "watchers")
"""What the host runs of the bench package; changing another module leaves the run the same."""
_INSIDE = "/tmp/added"  # noqa: S108 - of the emulated host: its memory, so no disk disturbs
_SCENARIOS = ("unicast-running", "unicast-halted")


def main() -> int:
    """Boot, measure, print the tables. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench", description=__doc__)
    parser.add_argument("--scenario", action="append", help=f"default: {' '.join(_SCENARIOS)}")
    parser.add_argument("--count", type=int, default=400, help="IPIs of each storm")
    parser.add_argument("--parameter", action="append", default=[], help="kernel parameter")
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "bench").resolve()
    try:
        require_root()
        run_on(boot, _request(asked, output))
        found = [Added(**fields) for fields in json.loads((output / RESULT).read_text())]
        tables = list(
            reports(found, lambda a: read_recorded(output / a.scenario, a.key), versions())
        )
    except LabError as error:
        say(f"failed: {error}")
        return FAILED
    for table in tables:
        print(table.markdown())
    write_json(tables, output / "bench.json")
    say(f"wrote {output / 'bench.json'}")
    return 0


def _request(asked: argparse.Namespace, output: Path) -> Request:
    scenarios = [word for name in asked.scenario or _SCENARIOS for word in ("--scenario", name)]
    measure = ["python3", "-m", "bench.added", _INSIDE, "--count", str(asked.count), *scenarios]
    command = f"(set -e; {shlex.join(measure)} >/dev/console; cp -r {_INSIDE}/. /job/result/)"
    return Request(
        suite=rootfs.SUITE,
        command=command,
        kernel_parameters=asked.parameter,
        output=output,
        root_disk=root_image(),
        files={f"site/bench/{name}.py": CHECKOUT / f"bench/{name}.py" for name in MODULES},
    )


if __name__ == "__main__":
    sys.exit(main())
