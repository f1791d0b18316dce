# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.truth`: the true times of an IPI's stages, on the emulated Intel host.

The emulator stamps the places of the kernel's tracepoints, while nothing is attached to them.
It can also make functions of the kernel take longer.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ipitrace.recording.reader import read_run
from ipitrace.words.scenarios import DEFAULT_SCENARIOS
from lab.common import rootfs
from lab.common.cache import cache_dir
from lab.common.command import FAILED, require_root
from lab.common.job import ipitrace_command
from lab.common.session import Request, run_on
from lab.common.steps import LabError, say
from lab.intel.boot import STAMPS, boot
from lab.truth.stages import TRACEPOINTS
from lab.truth.truth import Truth, read_truth, write_truth
from lab.truth.verdict import compare, table

DIFFERS = 1
_INSIDE = Path(__file__).with_name("inside.py")


def main() -> int:
    """Boot, run, compute and print the truth. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.truth", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="IPIs per scenario")
    parser.add_argument("--scenario", action="append", help="default: ipitrace's default ones")
    parser.add_argument(
        "--hold",
        action="append",
        default=[],
        type=_hold,
        metavar="FUNCTION=TICKS",
        help="make a function of the host's kernel take longer",
    )
    parser.add_argument(
        "--traced",
        action="store_true",
        help="trace the run, and compare its stages with the true ones, which are those of its "
        "repetitions in mode off; exit code 1 if they differ",
    )
    parser.add_argument(
        "--unstamped", action="store_true", help="the same run without stamps and holds"
    )
    parser.add_argument("--parameter", action="append", default=[], help="kernel parameter")
    parser.add_argument("--wheel", type=Path, help="default: built from the checkout")
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    parser.add_argument("more", nargs="*", help="further options of `ipitrace run`, after --")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "truth").resolve()
    scenarios = asked.scenario or list(DEFAULT_SCENARIOS)
    options = [word for name in scenarios for word in ("--scenario", name)]
    options += [] if asked.traced else ["--no-trace"]
    command = truth_job(["--count", str(asked.count), *options, *asked.more], dict(asked.hold))
    files = {_INSIDE.name: _INSIDE}
    request = Request(rootfs.SUITE, command, asked.parameter, output, asked.wheel, files=files)
    try:
        require_root()
        run_on(partial(boot, stamped=not asked.unstamped), request)
        if asked.unstamped:
            return 0
        truth = read_truth(output / "recording", output / STAMPS, output / "places.json")
    except LabError as error:
        say(f"failed: {error}")
        return FAILED
    write_truth(truth, output)
    _print(truth, scenarios)
    if not asked.traced:
        return 0
    rows = list(compare(read_run(output / "recording"), truth))
    print(table(rows))
    return 0 if all(row.holds for row in rows) else DIFFERS


def truth_job(options: Sequence[str], holds: Mapping[str, int]) -> str:
    """The shell command that gives the emulator its table and then measures.

    Args:
        options: of `ipitrace run`.
        holds: function of the kernel to the ticks that it is to take longer.
    """
    place = ["python3", f"/job/{_INSIDE.name}", json.dumps(TRACEPOINTS), json.dumps(holds)]
    run = ipitrace_command(["run", "--seed", "1", "-o", "/job/result/recording", *options])
    return f"{{ {shlex.join(place)} >/job/result/places.json && {run}; }}"


def _hold(text: str) -> tuple[str, int]:
    name, _, ticks = text.partition("=")
    if not name or not ticks.isascii() or not ticks.isdecimal():
        raise argparse.ArgumentTypeError(f"not FUNCTION=TICKS: {text}")
    return name, int(ticks)


def _print(truth: Truth, scenarios: Sequence[str]) -> None:
    for scenario in scenarios:
        part = truth.scenarios[scenario]
        names = " > ".join(stage.name.lower() for stage in part.sequences[0].stages)
        print(f"{scenario}: {part.sequences[0].spans} of {part.spans} IPIs: {names}")
        for step in part.steps:
            step_ticks = "" if step.step_cycles is None else step.step_cycles
            name = step.stage.name.lower()
            print(f"  {name:18}{step.since_send_cycles:8}{step_ticks:>8}{step.spans:8}")


if __name__ == "__main__":
    sys.exit(main())
