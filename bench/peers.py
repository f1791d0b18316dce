# SPDX-License-Identifier: Apache-2.0
"""The effect of tracing on an IPI: ipitrace compared with other tools, in one run."""

import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.report import CYCLES, Report, Series, spread
from bench.storms import NO_HOOKS, Storms, deliver_cycles, mirrored, scenario, watching
from ipitrace.host.programs import clean_environment
from ipitrace.storm.driver import Hooks
from ipitrace.tracer import Tracer
from ipitrace.tracer.events import EVENTS
from ipitrace.tracer.tracefs import find_tracefs

_ROUNDS = 5
_COUNT = 1000
_READY_LIMIT_S = 10.0
_SETTLE_S = 0.3
_STOP_S = 10.0

Watch = Callable[[], AbstractContextManager[Hooks]]


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: the tool's usual name.
        commands: possible names of the program; the first installed one is used.
        arguments: those that make it trace KVM on this host.
        ready: text that it prints when it traces; "" if it prints nothing: then we wait.
    """

    name: str
    commands: tuple[str, ...]
    arguments: tuple[str, ...]
    ready: str = ""


class DoesNotRunError(Exception):
    """The tool is installed and ended by itself; the message is its last line."""


def peers() -> Report:
    """Median D of the micro-guest: untraced, traced by ipitrace, and traced by each other tool."""
    storms = Storms(scenario("unicast-running"), _COUNT)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        tracer = stack.enter_context(Tracer.load(pid=os.getpid(), n_vcpus=2))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipitrace-bench-")))
        watches: dict[str, Watch] = {
            "nothing": lambda: nullcontext(NO_HOOKS),
            "ipitrace, counting": lambda: _ours(tracer, counting_only=True),
            "ipitrace, full": lambda: _ours(tracer, counting_only=False),
        }
        tracefs = find_tracefs()
        for peer in _peers(scratch, tracefs):
            program = next(filter(None, map(_found, peer.commands)), None)
            if program is None:
                missing[peer.name] = "absent"
                continue
            if tracefs is None or _host_tracing_in_use(tracefs):
                missing[peer.name] = "left out: tracefs is absent or in use"
                continue
            watch = _theirs(peer, program, tracefs)
            try:
                with watch():
                    watches[peer.name] = watch
            except DoesNotRunError as error:
                missing[peer.name] = textwrap.shorten(f"does not run here: {error}", 90)
        cycles: dict[str, list[float]] = {name: [] for name in watches}
        storms.run()
        for name in mirrored(list(watches), _ROUNDS):
            with watches[name]() as hooks:
                cycles[name].append(deliver_cycles(storms.run(hooks)))
            tracer.drain()
            tracer.take()
    nothing = cycles["nothing"]
    rows: list[Sequence[object]] = [
        (name, spread(taken, 0), spread((b / a for a, b in zip(nothing, taken, strict=True)), 3))
        for name, taken in cycles.items()
    ]
    rows += [(name, why, "") for name, why in missing.items()]
    return Report(
        "Median D of an IPI, by tracing tool",
        ("traced by", "D, cycles", "ratio to nothing"),
        rows,
        (
            f"{_ROUNDS} rounds in mirrored order: median (minimum to maximum).",
            f"In each round a storm of {_COUNT} IPIs ({storms.scenario.name}) in a new guest.",
            "kvmexit traces kvm_exit only: where this event does not fire, it costs nothing.",
            "bpftrace counts the tracepoints that ipitrace traces, for our process.",
        ),
        [Series(f"D watched by {name}", CYCLES, taken) for name, taken in cycles.items()],
    )


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


@contextmanager
def _ours(tracer: Tracer, *, counting_only: bool) -> Iterator[Hooks]:
    tracer.attach(counting_only=counting_only)
    try:
        yield watching(tracer)
    finally:
        tracer.detach()


def _theirs(peer: Peer, program: str, tracefs: Path) -> Watch:
    @contextmanager
    def watch() -> Iterator[Hooks]:
        with tempfile.TemporaryFile() as output, _host_tracing_kept(tracefs):
            process = subprocess.Popen(
                [program, *peer.arguments], stdout=output, stderr=output, start_new_session=True
            )
            try:
                _wait_until_ready(process, output.fileno(), peer)
                yield NO_HOOKS
            finally:
                _stop(process)

    return watch


def _found(name: str) -> str | None:
    return shutil.which(name, path=clean_environment()["PATH"])


def _wait_until_ready(process: subprocess.Popen[bytes], output: int, peer: Peer) -> None:
    until_s = time.monotonic() + (_READY_LIMIT_S if peer.ready else 3 * _SETTLE_S)
    while time.monotonic() < until_s:
        output_text = os.pread(output, 1 << 16, 0).decode(errors="replace")
        if _ended(process):
            raise DoesNotRunError((output_text.strip().splitlines() or ["it ended"])[-1].strip())
        if peer.ready and peer.ready in output_text:
            break
        time.sleep(_SETTLE_S / 10)
    time.sleep(_SETTLE_S)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped, so its process group id is not reused."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt it as a user would, so that it detaches; then kill remaining processes."""
    if not _ended(process):
        process.send_signal(signal.SIGINT)
    until_s = time.monotonic() + _STOP_S
    while time.monotonic() < until_s and not _ended(process):
        time.sleep(_SETTLE_S / 10)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _peers(scratch: Path, tracefs: Path | None) -> tuple[Peer, ...]:
    names = [f"{e.category}:{e.name}" for e in EVENTS if e.category]
    present = [n for n in names if tracefs and (tracefs / "events" / n.replace(":", "/")).is_dir()]
    probes = ",".join(f"tracepoint:{name}" for name in present)
    count = f"{probes} /pid == {os.getpid()}/ {{ @[probe] = count(); }}"
    return (
        Peer(
            "perf kvm stat record",
            ("perf",),
            ("kvm", "--host", "stat", "record", "-a", "-o", str(scratch / "perf.data")),
        ),
        Peer(
            "trace-cmd record -e kvm",
            ("trace-cmd",),
            # -d leaves the function tracer unchanged; some kernels do not allow changes.
            ("record", "-d", "-e", "kvm", "-o", str(scratch / "trace.dat"), "sleep", "600"),
        ),
        Peer("bcc kvmexit", ("kvmexit-bpfcc", "kvmexit"), ("-p", str(os.getpid())), "Ctrl-C"),
        Peer("bpftrace, counting", ("bpftrace",), ("-e", count), "Attaching"),
    )
