# SPDX-License-Identifier: Apache-2.0
"""What runs inside the emulated host."""

import shlex
from pathlib import Path

from lab.common.job import ipitrace_command

PAIRS = (
    ("unicast-running", "unicast-running-passthrough"),
    ("unicast-halted", "unicast-halted-passthrough"),
    ("unicast-blocked", "unicast-blocked-passthrough"),
    ("unicast-preempted", "unicast-preempted-passthrough"),
    ("self", "self-passthrough"),
    ("broadcast", "broadcast-passthrough"),
)
"""What is compared: a scenario with the parameter off, the same through descriptors with it on."""

REPETITIONS = 8
"""Of each scenario in each mode; with six, 29 headline metrics are too many to decide."""

HARDSHIPS = 50_000
"""IPIs of each case of hardships.py."""

_FOLDER = Path(__file__).parent
_AT_ONCE = ("--no-trace", "--pace", "0", "--seed", "1")
_NO_POLLING = "echo 0 >/sys/module/kvm/parameters/halt_poll_ns"
"""Then every HLT blocks, however soon the next IPI comes."""


def tables_job(name: str, count: int) -> str:
    """One traced run for the tables: the first or the second of each of PAIRS."""
    which = ("off", "on").index(name)
    scenarios = [word for pair in PAIRS for word in ("--scenario", pair[which])]
    options = ["--count", str(count), "--repeat", str(REPETITIONS), "--seed", "1", *scenarios]
    return ipitrace_command(["run", *options, "-o", "/job/result/recording"])


def many_job(count: int) -> str:
    """Many IPIs in each passthrough scenario, one after the other and not traced.

    With four vCPUs, so that a broadcast has three targets.
    """
    runs = []
    for _, scenario in PAIRS:
        if "blocked" in scenario:
            runs.append(_NO_POLLING)
        options = [*_AT_ONCE, "--count", str(count), "--scenario", scenario]
        target = ["--vm", "micro:4", "-o", f"/job/result/{scenario}"]
        runs.append(ipitrace_command(["run", *options, *target]))
    return f"({' && '.join(runs)})"


def hardships_job(count: int) -> str:
    """All cases of hardships.py, with `count` IPIs each."""
    return _script("hardships.py", str(count))


def risk_job() -> str:
    """A guest that writes foreign CPUs and vectors to the physical ICR.

    Then such guests again, and what `watch` and a `run` beside them notice.
    """
    watch = ipitrace_command(["watch", "--interval", "0.5", "--duration", "2", "--json"])
    options = ["--scenario", "unicast-running", "--count", "60", "--repeat", "2"]
    run = ipitrace_command(["run", *options, "-o", "/job/result/recording"])
    return (
        f"({_script('foreign.py')}; {_script('foreign.py', 'forever')} & "
        f"{watch} >/job/result/watch.jsonl; {run} >/job/result/run.txt; kill $!)"
    )


def _script(name: str, *arguments: str) -> str:
    return shlex.join(["python3", "-c", (_FOLDER / name).read_text(), *arguments])
