# SPDX-License-Identifier: Apache-2.0
"""What watches a storm: nothing, ipitrace in each of its modes, or another tool."""

import os
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.storms import N_VCPUS, NO_HOOKS, watching
from ipitrace.host.programs import clean_environment
from ipitrace.storm.driver import Hooks
from ipitrace.tracer import Tracer
from ipitrace.tracer.events import EVENT_BY_NAME, STAGE_EVENTS
from ipitrace.tracer.tracefs import find_tracefs

STAGE_TRACEPOINTS: Final = (
    "kvm_exit",
    "kvm_entry",
    "kvm_apic_ipi",
    "kvm_apic_accept_irq",
    "kvm_apicv_accept_irq",
    "kvm_eoi",
    "kvm_inj_virq",
    "kvm_vcpu_wakeup",
    "sched_switch",
)
"""The tracepoints that the stages of an IPI come from, on VMX."""

NOTHING: Final = "nothing"
OTHER_VM: Final = "ipitrace, stages of another VM"
DATA: Final = ".data"
PRINTED: Final = ".txt"
_WHY_CHARACTERS: Final = 90
_READY_LIMIT_S: Final = 60.0
_STOP_LIMIT_S: Final = 60.0
_POLL_S: Final = 0.03

Watch = Callable[[], AbstractContextManager[Hooks]]


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: the tool's usual name.
        key: the name of its files: what it printed (PRINTED) and what it recorded (DATA).
        commands: possible names of the program; the first installed one is used.
        arguments: those that make it trace KVM on this host.
        ready: text that it prints when it traces; "" if it prints nothing: then we wait.
    """

    name: str
    key: str
    commands: tuple[str, ...]
    arguments: tuple[str, ...]
    ready: str = ""


class DoesNotRunError(Exception):
    """The tool does not run here; the message is the reason."""


def own_watches(stack: ExitStack) -> dict[str, Watch]:
    """No watcher, and ipitrace in each of its modes, by name.

    Args:
        stack: closes the tracers.
    """
    pid = os.getpid()
    stages = stack.enter_context(Tracer.load(pid=pid, n_vcpus=N_VCPUS, events=STAGE_EVENTS))
    evidence = stack.enter_context(Tracer.load(pid=pid, n_vcpus=N_VCPUS))
    return {
        NOTHING: lambda: nullcontext(NO_HOOKS),
        OTHER_VM: lambda: _of_another(stages),
        "ipitrace, stages counted": lambda: _own(stages, counting_only=True),
        "ipitrace, stages": lambda: _own(stages, counting_only=False),
        "ipitrace, evidence": lambda: _own(evidence, counting_only=False),
    }


def peers(scratch: Path, names: Iterable[str]) -> tuple[Peer, ...]:
    """The other tools, set to trace this host.

    Args:
        scratch: the folder of their files.
        names: the tracepoints that a tool traces if it can trace any; those that this kernel
            does not have are left out.
    """
    tracefs = find_tracefs()
    paths = [f"{event.category}/{event.name}" for event in map(EVENT_BY_NAME.get, names) if event]
    present = [path for path in paths if tracefs and (tracefs / "events" / path).is_dir()]
    points = [path.replace("/", ":") for path in present]
    probes = ",".join(f"tracepoint:{point}" for point in points)

    def data(key: str) -> tuple[str, str]:
        return "-o", str(scratch / f"{key}{DATA}")

    return (
        Peer(
            "perf kvm stat record",
            "perf-kvm-stat",
            ("perf",),
            ("kvm", "--host", "stat", "record", "-a", *data("perf-kvm-stat")),
        ),
        Peer(
            "perf record, the same tracepoints",
            "perf-record",
            ("perf",),
            ("record", "-a", "-c", "1", "-e", ",".join(points), *data("perf-record")),
        ),
        Peer(
            "trace-cmd record -e kvm",
            "trace-cmd",
            ("trace-cmd",),
            # -d leaves the function tracer unchanged; some kernels do not allow changes.
            ("record", "-d", "-e", "kvm", *data("trace-cmd"), "sleep", "600"),
        ),
        Peer(
            "bpftrace, counting the same tracepoints",
            "bpftrace",
            ("bpftrace",),
            ("-e", f"{probes} /pid == {os.getpid()}/ {{ @[probe] = count(); }}"),
            "Attaching",
        ),
        Peer(
            "bcc's kvmexit",
            "kvmexit",
            ("kvmexit-bpfcc", "kvmexit"),
            ("-p", str(os.getpid())),
            "Ctrl-C",
        ),
    )


@contextmanager
def peer_watch(peer: Peer, scratch: Path, settle_s: float) -> Iterator[Hooks]:
    """Let another tool trace while inside.

    Args:
        peer: the tool.
        scratch: the folder of its files.
        settle_s: how long to wait after it says that it traces; three times as long if it does
            not say so.

    Raises:
        DoesNotRunError: it is not installed, it ended by itself, or it may not be started now.
    """
    program = next(filter(None, map(_found, peer.commands)), None)
    if program is None:
        raise DoesNotRunError("absent")
    tracefs = find_tracefs()
    if tracefs is None or _host_tracing_in_use(tracefs):
        raise DoesNotRunError("left out: tracefs is absent or in use")
    printed = scratch / f"{peer.key}{PRINTED}"
    with printed.open("wb") as output, _host_tracing_kept(tracefs):
        process = subprocess.Popen(
            [program, *peer.arguments], stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait_until_ready(process, printed, peer, settle_s)
            yield NO_HOOKS
        finally:
            _stop(process)


@contextmanager
def _own(tracer: Tracer, *, counting_only: bool) -> Iterator[Hooks]:
    tracer.attach(counting_only=counting_only)
    try:
        yield watching(tracer)
    finally:
        tracer.detach()
        tracer.drain()
        tracer.take()


@contextmanager
def _of_another(tracer: Tracer) -> Iterator[Hooks]:
    """The programs are attached, and the storm's threads are not theirs."""
    tracer.set_vcpu_threads([])
    tracer.attach()
    try:
        yield NO_HOOKS
    finally:
        tracer.detach()


@contextmanager
def _host_tracing_kept(tracefs: Path) -> Iterator[None]:
    """Restore the host's own trace settings at the end, even if trace-cmd dies."""
    switches = [tracefs / "tracing_on", tracefs / "events/kvm/enable"]
    before = [switch.read_text() for switch in switches]
    try:
        yield
    finally:
        for switch, text in zip(switches, before, strict=True):
            switch.write_text(text)


def _host_tracing_in_use(tracefs: Path) -> bool:
    return (tracefs / "events/enable").read_text().strip() != "0"


def _found(name: str) -> str | None:
    return shutil.which(name, path=clean_environment()["PATH"])


def _wait_until_ready(
    process: subprocess.Popen[bytes], printed: Path, peer: Peer, settle_s: float
) -> None:
    until_s = time.monotonic() + (_READY_LIMIT_S if peer.ready else 3 * settle_s)
    while time.monotonic() < until_s:
        text = printed.read_text(errors="replace")
        if _ended(process):
            why = textwrap.shorten(_why_it_ended(text), _WHY_CHARACTERS)
            raise DoesNotRunError(f"does not run here: {why}")
        if peer.ready and peer.ready in text:
            break
        time.sleep(_POLL_S)
    else:
        if peer.ready:
            raise DoesNotRunError(f"does not run here: not ready after {_READY_LIMIT_S:.0f} s")
    time.sleep(settle_s)


def _why_it_ended(text: str) -> str:
    """The line of a tool's output that says best why the tool ended by itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended"


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped, so its process group id is not reused."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt its process group as a terminal does, so that it detaches; then kill the rest."""
    if not _ended(process):
        os.killpg(process.pid, signal.SIGINT)
    until_s = time.monotonic() + _STOP_LIMIT_S
    while time.monotonic() < until_s and not _ended(process):
        time.sleep(_POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
