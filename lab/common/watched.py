# SPDX-License-Identifier: Apache-2.0
"""Runs in an emulated host: `ipitrace watch` beside one storm of each of some scenarios.

`watched.py COUNT SCENARIO...` writes RESULT: for each scenario what `watch` counted in the
guest's VM, and how many IPIs each vCPU's handler counted. `watched.py guest COUNT SCENARIO` is
one guest in a process of its own, which waits for a line before its warm-up, before its first
measured send and after its last.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios

RESULT: Final = "watched.json"
_FOLDER: Final = Path("/job/result")
_N_VCPUS: Final = 2
_WARMUP, _PACE_CYCLES, _TIMEOUT_S = 10, 20_000, 60.0
_COUNTED: Final = ("sends", "ipis", "pairs", "others", "missed", "unplaced", "visibility")


def main() -> None:
    """Be a guest, or watch one after the other."""
    if sys.argv[1] == "guest":
        _guest(int(sys.argv[2]), sys.argv[3])
        return
    found = _watch(sys.argv[1], sys.argv[2:])
    (_FOLDER / RESULT).write_text(json.dumps(found, indent=1) + "\n")


def _guest(count: int, name: str) -> None:
    def step() -> None:
        print("waiting", flush=True)
        sys.stdin.readline()

    request = StormRequest(
        select_scenarios([name])[0], _N_VCPUS, count, _WARMUP, _PACE_CYCLES, _TIMEOUT_S
    )
    storm = MicroGuest.prepare(_N_VCPUS, None).run(request, Hooks(mark=step))
    print(json.dumps(storm.handled), flush=True)


def _watch(count: str, names: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "ipitrace", "watch", "--json", "--interval", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        intervals = map(json.loads, watch.stdout or ())
        try:
            return {name: _one(intervals, count, name) for name in names}
        finally:
            watch.kill()


def _one(intervals: Iterator[dict[str, Any]], count: str, name: str) -> dict[str, Any]:
    """One guest, from before its storm until `watch` has counted it."""
    with subprocess.Popen(
        [sys.executable, __file__, "guest", count, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guest:
        try:
            _line(guest)
            _go_on(guest)
            _line(guest)
            before = _from_now(intervals, guest.pid)
            _go_on(guest)
            _line(guest)
            after = _from_now(intervals, guest.pid)
            _go_on(guest)
            handled = json.loads(_line(guest))
        finally:
            guest.kill()
    return {
        "before": before["ipis"]["total"],
        "handled": handled,
        **{key: after[key] for key in _COUNTED},
    }


def _from_now(intervals: Iterator[dict[str, Any]], pid: int) -> dict[str, Any]:
    """The VM of a process in the first interval that begins after this call and has it.

    Intervals before are in the pipe and are skipped.
    """
    now = datetime.now(UTC)
    for interval in intervals:
        began = datetime.fromisoformat(interval["time"]) - timedelta(seconds=interval["duration_s"])
        for vm in interval["vms"] if began > now else ():
            if vm["pid"] == pid:
                found: dict[str, Any] = vm
                return found
    raise SystemExit("watch ended before the storm did")


def _line(guest: "subprocess.Popen[str]") -> str:
    """The guest's next line; it prints one whenever it waits."""
    return guest.stdout.readline() if guest.stdout else ""


def _go_on(guest: "subprocess.Popen[str]") -> None:
    if guest.stdin:
        guest.stdin.write("\n")
        guest.stdin.flush()


if __name__ == "__main__":
    main()
