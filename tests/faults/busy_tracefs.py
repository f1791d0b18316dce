# SPDX-License-Identifier: Apache-2.0
"""`python busy_tracefs.py COMMAND...`: tracefs as another's tools use it, while COMMAND runs.

In a mount namespace of its own it makes an instance with kvm's and sched_switch's events on, a
second one with a tracer, and switches sched_wakeup on at the top, as trace-cmd would. A BPF program
of another's is attached to sys_enter. Says as JSON what of that was still so afterwards.
Instances outlive a process that was killed: their names end in its id, and the next one removes
those whose process is gone.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.rings import _Producer
from ipitrace.tracer.tracefs import ensure_tracefs

N_SLOTS = 1024
EVENTS_PER_S = 1e4


def main() -> None:
    tracefs, why = ensure_tracefs()
    if tracefs is None:
        sys.exit(why)
    remove_leftovers(tracefs)
    with ExitStack() as stack:
        events = instance(tracefs, "ipitrace-test-events", stack)
        for name in ("kvm", "sched/sched_switch"):
            (events / "events" / name / "enable").write_text("1")
        tracer = instance(tracefs, "ipitrace-test-tracer", stack)
        for name in (tracer / "available_tracers").read_text().split():
            with suppress(OSError):  # not every tracer works in an instance, or on any kernel
                (tracer / "current_tracer").write_text(name)
        top = tracefs / "events/sched/sched_wakeup/enable"
        top.write_text("1")
        stack.callback(top.write_text, "0")
        producer = stack.enter_context(_Producer())
        reader = stack.enter_context(producer.rings(N_SLOTS))

        before = state(events, tracer, top)
        done = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=False)
        after = state(events, tracer, top)
        producer.start(EVENTS_PER_S, 0.1)
        while not producer.finished():
            time.sleep(0.01)
        lines = (events / "trace").read_text().splitlines()
        told = {
            "code": done.returncode,
            "complained": done.stderr,
            "before": before,
            "after": after,
            "their_events": sum(not line.startswith("#") for line in lines),
            "their_program_saw": int(reader.seen().sum()),
        }
    print(json.dumps(told))


def instance(tracefs: Path, name: str, stack: ExitStack) -> Path:
    made = tracefs / "instances" / f"{name}-{os.getpid()}"
    made.mkdir()
    stack.callback(made.rmdir)
    return made


def remove_leftovers(tracefs: Path) -> None:
    for left in tracefs.glob("instances/ipitrace-test-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).is_dir():
            left.rmdir()


def state(events: Path, tracer: Path, top: Path) -> dict[str, str]:
    """All that another set, and could be told from a tool that changed it."""
    files = {
        "events": events / "set_event",
        "events_on": events / "tracing_on",
        "tracer": tracer / "current_tracer",
        "top": top,
    }
    return {name: file.read_text() for name, file in files.items()}


main()
