# SPDX-License-Identifier: Apache-2.0
"""What runs inside the emulated host."""

import shlex
from pathlib import Path

from lab.common.job import ipitrace_command

PAIRS = (
    ("unicast-running", "unicast-running-passthrough"),
    ("unicast-halted", "unicast-halted-passthrough"),
    ("unicast-blocked", "unicast-blocked-passthrough"),
    ("self", "self-passthrough"),
    ("broadcast", "broadcast-passthrough"),
)
"""What is compared: a scenario with the parameter off, the same through descriptors with it on."""

_FOREIGN = Path(__file__).with_name("foreign.py")
_AT_ONCE = ("--no-trace", "--pace", "0", "--seed", "1")


def tables_job(name: str, count: int) -> str:
    """One traced run for the tables: the first or the second of each of PAIRS."""
    which = ("off", "on").index(name)
    scenarios = [word for pair in PAIRS for word in ("--scenario", pair[which])]
    options = ["--count", str(count), "--seed", "1", *scenarios]
    return ipitrace_command(["run", *options, "-o", "/job/result/recording"])


def many_job(count: int) -> str:
    """Many IPIs in each passthrough scenario, one after the other and not traced.

    With four vCPUs, so that a broadcast has three targets.
    """
    runs = []
    for _, scenario in PAIRS:
        options = [*_AT_ONCE, "--count", str(count), "--scenario", scenario]
        target = ["--vm", "micro:4", "-o", f"/job/result/{scenario}"]
        runs.append(ipitrace_command(["run", *options, *target]))
    return f"({' && '.join(runs)})"


def risk_job() -> str:
    """A guest that writes foreign CPUs and vectors to the physical ICR."""
    return f"python3 -c {shlex.quote(_FOREIGN.read_text())}"
