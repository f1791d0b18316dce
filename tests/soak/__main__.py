# SPDX-License-Identifier: Apache-2.0
"""`make soak`: an hour of `ipitrace watch` while VMs come and go, and of runs beside it.

What the watch uses must be the same whenever it rests, its memory must not grow, and the IPIs
of every VM that waited to be seen must add up to what its guest sent. VMs that came and went
between two looks, or were killed in mid-storm, may be missing: nobody knows what they sent.
Prints a row a minute and a verdict. Exit codes: 0 flat and nothing lost, 1 not so, 2 usage.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from guests_of_a_cycle import Outcome, cycle
from host_state import IPITRACE, HostState
from judging import Usage, judge_memory, judge_usage
from watching import Watch

from ipitrace.base.errors import ExitCode
from ipitrace.base.units import MIB

_WARM_UP_SHARE, _LONGEST_WARM_UP_S = 0.2, 180.0
_RUNS: Sequence[Sequence[str]] = (
    ("run", "--count", "400", "--repeat", "2", "-q", "--force", "-o", "rec"),
    ("run", "--no-trace", "--vm", "micro:4", "--count", "400", "-q", "--force", "-o", "rec"),
    ("list",),
    ("doctor",),
    ("report", "rec"),
)
_PAUSE_S = 2.0


class Runs(threading.Thread):
    """Commands one after the other, each in a process of its own; how much memory each took."""

    def __init__(self, cwd: Path, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._cwd, self._environment = cwd, environment
        self._over = threading.Event()
        self.peaks_bytes: list[int] = []
        """Of the first command."""
        self.times_s: list[float] = []
        self.done = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while True:
            for words in _RUNS:
                if self._over.wait(_PAUSE_S):
                    return
                self._one(words)

    def _one(self, words: Sequence[str]) -> None:
        with tempfile.TemporaryFile("w+") as complaints:
            process = subprocess.Popen(
                [*IPITRACE, *words],
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
            )
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            complaints.seek(0)
            said = complaints.read()
        self.done += 1
        if words is _RUNS[0]:
            self.times_s.append(time.monotonic())
            self.peaks_bytes.append(usage.ru_maxrss << 10)
        # Beside storms a run may say that its numbers are not to be trusted.
        fine = process.returncode in {ExitCode.OK, ExitCode.UNTRUSTWORTHY}
        if not fine or "Traceback" in said:
            self.wrong.append(f"ipitrace {' '.join(words)}: code {process.returncode}: {said}")

    def end(self) -> None:
        """Let the one that runs end."""
        self._over.set()
        self.join()


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=12)
    asked = parser.parse_args()
    before = HostState.now()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        wrong = _soak(Path(name), asked.minutes * 60, random.Random(asked.seed))  # noqa: S311
    try:
        before.assert_restored()
    except AssertionError as error:
        wrong.append(f"left on the host: {error}")
    for line in wrong:
        print(f"wrong: {line}")
    print("Not flat, or something is lost." if wrong else "Flat, and nothing is lost.")
    return int(bool(wrong))


def _soak(top: Path, duration_s: float, chance: random.Random) -> list[str]:
    places = [top / name for name in ("watch", "runs", "tmp-watch", "tmp-runs")]
    for place in places:
        place.mkdir()
    env = dict(os.environ)
    runs = Runs(places[1], env | {"TMPDIR": str(places[3])})
    outcome = Outcome(0, 0, 0, [], [])
    times_s: list[float] = []
    rests: list[Usage] = []
    print("  min    RSS MiB  fds  threads  BPF  VMs seen (brief)       IPIs  runs", flush=True)
    with Watch(places[0], places[2], env | {"TMPDIR": str(places[2])}) as watch:
        watch.interval_after_now()
        runs.start()
        began_s = time.monotonic()
        row_at_s = began_s
        while (now_s := time.monotonic()) < began_s + duration_s:
            cycle(chance, watch, outcome, env)
            watch.interval_after_now()
            watch.interval_after_now()  # by then those that ended are let go
            times_s.append(time.monotonic())
            rests.append(watch.usage_at_rest())
            if now_s >= row_at_s:
                _print_row(now_s - began_s, rests[-1], outcome, runs.done)
                row_at_s += 60
        runs.end()
        _print_row(time.monotonic() - began_s, rests[-1], outcome, runs.done)
        code = watch.end()
        complaints = watch.complaints()
        ended_well = watch.metrics.read_text().endswith("# EOF\n")
    wrong = [*outcome.wrong, *runs.wrong]
    if code or complaints:
        wrong.append(f"watch ended with code {code}: {complaints}")
    if not ended_well:
        wrong.append("the OpenMetrics file is not whole")
    if not outcome.witnessed or len(outcome.unmade) > outcome.witnessed:
        wrong.append(f"too few VMs were made: {outcome.unmade}")
    wrong += [f"left behind: {path}" for place in places[2:] for path in place.iterdir()]
    wrong += [f"left behind: {path}" for path in places[1].iterdir() if path.name != "rec"]
    for line in outcome.unmade:
        print(f"not counted: {line}")
    warm_s = began_s + min(_WARM_UP_SHARE * duration_s, _LONGEST_WARM_UP_S)
    wrong += judge_usage("watch", warm_s, times_s, rests)
    wrong += judge_memory("the runs, peak", warm_s, runs.times_s, runs.peaks_bytes)
    return wrong


def _print_row(at_s: float, usage: Usage, outcome: Outcome, runs: int) -> None:
    print(
        f"{at_s / 60:5.1f}  {usage.rss_bytes / MIB:9.1f}  {usage.descriptors:3}  {usage.threads:7}"
        f"  {usage.bpf_objects:3}  {outcome.witnessed:8} {f'({outcome.brief})':>7}"
        f"  {outcome.ipis:9}  {runs:4}",
        flush=True,
    )


with suppress(KeyboardInterrupt):
    sys.exit(main())
sys.exit(ExitCode.INTERRUPTED)
