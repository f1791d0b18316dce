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
_NO_POLLING = "echo 0 >/sys/module/kvm/parameters/halt_poll_ns"
_ASLEEP_CYCLES = 20_000
"""After so many a target's thread sleeps, if the host does not poll for it."""


def tables_job(name: str, count: int) -> str:
    """One traced run for the tables: the first or the second of each of PAIRS."""
    which = ("off", "on").index(name)
    scenarios = [word for pair in PAIRS for word in ("--scenario", pair[which])]
    options = ["--count", str(count), "--repeat", str(REPETITIONS), "--seed", "1", *scenarios]
    return ipitrace_command(["run", *options, "-o", "/job/result/recording"])


def many_job(count: int) -> str:
    """Many IPIs in each passthrough scenario, as fast as they are acknowledged, not traced.

    With four vCPUs, so that a broadcast has three targets. A tenth of them to preempted
    targets: each takes the rival a hundred times as long as the rest of it.
    """

    def run(name: str, n: int, pace_cycles: int = 0) -> str:
        scenario = f"{name}-passthrough"
        options = ["--no-trace", "--seed", "1", "--vm", "micro:4", "--pace", str(pace_cycles)]
        options += ["--count", str(n), "--scenario", scenario, "-o", f"/job/result/{scenario}"]
        return ipitrace_command(["run", *options])

    at_once = [run(name, count) for name in ("unicast-running", "unicast-halted", "self")]
    others = [run("broadcast", count), run("unicast-preempted", count // 10), _NO_POLLING]
    last = run("unicast-blocked", count, _ASLEEP_CYCLES)
    return f"({' && '.join([*at_once, *others, last])})"


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
