# SPDX-License-Identifier: Apache-2.0
"""What watching does to an IPI, ours beside other tools, all in one run."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.report import CYCLES, Report, Series, spread
from bench.storms import NO_HOOKS, Storms, deliver_cycles, mirrored, scenario, watching
from ipitrace.storm.driver import Hooks
from ipitrace.tracer import Tracer
from ipitrace.tracer.events import EVENTS
from ipitrace.tracer.tracefs import find_tracefs

_ROUNDS = 5
_COUNT = 1500
_READY_LIMIT_S = 10.0
_SETTLE_S = 0.3
_STOP_S = 10.0

Watch = Callable[[], AbstractContextManager[Hooks]]


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: as people know it.
        commands: the program's possible names, the first that is installed is used.
        arguments: that make it watch KVM on this host.
        ready: text it prints when it watches; "" where it prints nothing, then we wait.
    """

    name: str
    commands: tuple[str, ...]
    arguments: tuple[str, ...]
    ready: str = ""


class DoesNotRunError(Exception):
    """The peer is here and ended by itself; the message is its last line."""


def peers() -> Report:
    """Median D of the micro-guest, watched by nobody, by us, and by each peer."""
    storms = Storms(scenario("unicast-running"), _COUNT)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        tracer = stack.enter_context(Tracer.load(pid=os.getpid(), n_vcpus=2))
        stack.enter_context(_tracing_on_kept())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipitrace-bench-")))
        watches: dict[str, Watch] = {
            "nothing": lambda: nullcontext(NO_HOOKS),
            "ipitrace, counting": lambda: _ours(tracer, counting_only=True),
            "ipitrace, full": lambda: _ours(tracer, counting_only=False),
        }
        for peer in _peers(scratch):
            program = next(filter(None, map(shutil.which, peer.commands)), None)
            if program is None:
                missing[peer.name] = "absent"
                continue
            watch = _theirs(peer, program)
            try:
                with watch():
                    watches[peer.name] = watch
            except DoesNotRunError as error:
                missing[peer.name] = f"does not run here: {error}"
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
        "Median D of an IPI, by who watches",
        ("watched by", "D, cycles", "ratio to nothing"),
        rows,
        (
            f"{_ROUNDS} rounds in mirrored order: median (least to greatest).",
            f"In each a storm of {_COUNT} IPIs ({storms.scenario.name}) in a fresh guest by each.",
            "kvmexit watches kvm_exit alone: where that does not fire it costs nothing.",
            "bpftrace counts the tracepoints that ipitrace watches, for our process.",
        ),
        [Series(f"D watched by {name}", CYCLES, taken) for name, taken in cycles.items()],
    )


@contextmanager
def _tracing_on_kept() -> Iterator[None]:
    """Whether the host's own trace buffer records is as before, however trace-cmd leaves it."""
    tracefs = find_tracefs()
    switch = tracefs / "tracing_on" if tracefs else None
    before = switch.read_text() if switch else ""
    try:
        yield
    finally:
        if switch:
            switch.write_text(before)


@contextmanager
def _ours(tracer: Tracer, *, counting_only: bool) -> Iterator[Hooks]:
    tracer.attach(counting_only=counting_only)
    try:
        yield watching(tracer)
    finally:
        tracer.detach()


def _theirs(peer: Peer, program: str) -> Watch:
    @contextmanager
    def watch() -> Iterator[Hooks]:
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [program, *peer.arguments], stdout=output, stderr=output, start_new_session=True
            )
            try:
                _wait_until_ready(process, output.fileno(), peer)
                yield NO_HOOKS
            finally:
                _stop(process)

    return watch


def _wait_until_ready(process: subprocess.Popen[bytes], output: int, peer: Peer) -> None:
    until_s = time.monotonic() + (_READY_LIMIT_S if peer.ready else 3 * _SETTLE_S)
    while time.monotonic() < until_s:
        said = os.pread(output, 1 << 16, 0).decode(errors="replace")
        if process.poll() is not None:
            raise DoesNotRunError((said.strip().splitlines() or ["it ended"])[-1].strip())
        if peer.ready and peer.ready in said:
            break
        time.sleep(_SETTLE_S / 10)
    time.sleep(_SETTLE_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt it as a person would, so that it detaches; kill what does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _peers(scratch: Path) -> tuple[Peer, ...]:
    tracefs = find_tracefs()
    names = [f"{e.category}:{e.name}" for e in EVENTS if e.category]
    there = [n for n in names if tracefs and (tracefs / "events" / n.replace(":", "/")).is_dir()]
    probes = ",".join(f"tracepoint:{name}" for name in there)
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
            # -d leaves the function tracer alone, which some kernels insist on.
            ("record", "-d", "-e", "kvm", "-o", str(scratch / "trace.dat")),
            "Ctrl^C",
        ),
        Peer("bcc kvmexit", ("kvmexit-bpfcc", "kvmexit"), ("-p", str(os.getpid())), "Ctrl-C"),
        Peer("bpftrace, counting", ("bpftrace",), ("-e", count), "Attaching"),
    )
