# SPDX-License-Identifier: Apache-2.0
"""The jobs that run inside the emulated host."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from lab.common.job import ipitrace_command

PAIRS: Sequence[tuple[str, str]] = (
    ("unicast-running", "unicast-running-passthrough"),
    ("unicast-halted", "unicast-halted-passthrough"),
    ("unicast-blocked", "unicast-blocked-passthrough"),
    ("unicast-preempted", "unicast-preempted-passthrough"),
    ("self", "self-passthrough"),
    ("broadcast", "broadcast-passthrough"),
)
"""Compared scenarios: with the parameter off, and through descriptors with it on."""

LINUX_PAIRS: Sequence[tuple[str, str]] = (
    ("unicast-running", "unicast-running-passthrough"),
    ("unicast-halted", "unicast-halted-passthrough"),
    ("unicast-running-smp-call", "unicast-running-smp-call"),
    ("unicast-halted-smp-call", "unicast-halted-smp-call"),
)
"""The same for a Linux guest. In the last two, its kernel sends by its own means."""

LINUX_REPETITIONS = 2

LINUX_DEBUG = 20
"""IPIs of each scenario in a Linux guest with a debug kernel, in emulation."""

MANY = (
    "unicast-running-passthrough",
    "unicast-halted-passthrough",
    "self-passthrough",
    "broadcast-passthrough",
    "broadcast-halted-passthrough",
    "unicast-blocked-passthrough",  # last, because the host no longer polls after it
)
"""The scenarios of many_job()."""

REPETITIONS = 8
"""Repetitions of each scenario in each mode; 6 are too few to decide 29 headline metrics."""

HARDSHIPS = 50_000
"""IPIs of each case of hardships.py."""

_FOLDER = Path(__file__).parent
_NO_POLLING = "echo 0 >/sys/module/kvm/parameters/halt_poll_ns"
_ASLEEP_CYCLES = 20_000
"""After this pace a target's thread sleeps, if the host does not poll for it."""


def tables_job(name: str, count: int) -> str:
    """One traced run for the tables: the first or the second of each of PAIRS."""
    which = ("off", "on").index(name)
    scenarios = [word for pair in PAIRS for word in ("--scenario", pair[which])]
    options = ["--count", str(count), "--repeat", str(REPETITIONS), "--seed", "1", *scenarios]
    return ipitrace_command(["run", *options, "-o", "/job/result/recording"])


def many_job(count: int) -> str:
    """Many IPIs in each scenario of MANY, as fast as they are acknowledged, not traced.

    With four vCPUs, so that a broadcast has three targets.
    """
    runs = [_many(name, count, n_vcpus=4) for name in MANY[:-1]]
    last = _many(MANY[-1], count, n_vcpus=4, pace_cycles=_ASLEEP_CYCLES)
    return f"({' && '.join([*runs, _NO_POLLING, last])})"


def many_preempted_job(count: int) -> str:
    """The same with preempted targets: preemption takes 100 times as long as all other parts."""
    return _many("unicast-preempted-passthrough", count, n_vcpus=2)


def _many(name: str, count: int, *, n_vcpus: int, pace_cycles: int = 0) -> str:
    options = ["--no-trace", "--seed", "1", "--vm", f"micro:{n_vcpus}", "--pace", str(pace_cycles)]
    options += ["--count", str(count), "--scenario", name, "-o", f"/job/result/{name}"]
    return ipitrace_command(["run", *options])


def linux_job(name: str, count: int) -> str:
    """Measure a Linux guest; `name` is "off" or "on", for its kernel's use of Passthrough IPI."""
    which = ("off", "on").index(name)
    options = ["--count", str(count), "--repeat", str(LINUX_REPETITIONS), "--seed", "1"]
    scenarios = [word for pair in LINUX_PAIRS for word in ("--scenario", pair[which])]
    return shlex.join(["sh", "/job/linux.sh", *options, *scenarios])


def hardships_job(count: int) -> str:
    """All cases of hardships.py, with `count` IPIs each."""
    return _script("hardships.py", str(count))


def risk_job() -> str:
    """A guest that writes foreign CPUs and vectors to the physical ICR.

    Then the same guests run again, while `watch` and a `run` show what they detect.
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
