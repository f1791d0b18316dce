# SPDX-License-Identifier: Apache-2.0
"""The time of commands that measure nothing: the start-up time of ipitrace."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from bench.report import SECONDS, Report, Series, spread
from ipitrace.host.programs import own_command

_ROUNDS: Final = 20
_WORDS: Final = (("--help",), ("run", "--help"), ("scenarios",), ("report", "--example"))


def starting() -> Report:
    """Each command in turn, in many rounds, and the interpreter only for comparison."""
    commands: dict[str, Sequence[str]] = {
        "the interpreter alone": [sys.executable, "-I", "-c", "pass"],
        **{f"ipitrace {' '.join(words)}": own_command(*words) for words in _WORDS},
    }
    wall_s: dict[str, list[float]] = {name: [] for name in commands}
    cpu_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(_ROUNDS):
        for name, command in commands.items():
            wall, cpu = _timed(command)
            wall_s[name].append(wall)
            cpu_s[name].append(cpu)
    return Report(
        "Start and end of a command",
        ("command", "ms", "of CPU time"),
        [
            (name, spread(v * 1e3 for v in wall_s[name]), spread(v * 1e3 for v in cpu_s[name]))
            for name in commands
        ],
        (f"{_ROUNDS} rounds, one command after the other; medians (middle half).",),
        [Series(f"start {name}", SECONDS, values) for name, values in wall_s.items()],
    )


def _timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds until it ended, and seconds of CPU time, without programs that it leaves behind."""
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall_s, used.ru_utime + used.ru_stime
