# SPDX-License-Identifier: Apache-2.0
"""The rate of events per second that one CPU can write to its ring without loss."""

import itertools
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.report import PER_SECOND, Report, Series
from ipitrace.abi.events import RING_EVENT, RING_HEAD, TIDS_PER_CELL, VCPU_OF_TID
from ipitrace.base import resources
from ipitrace.tracer.attaching import mapped
from ipitrace.tracer.compiler import compile_programs
from ipitrace.tracer.events import EVENTS
from ipitrace.tracer.kernel import n_tids
from ipitrace.tracer.rings import RingReader
from ipitrace.tracer.sizes import DrainPace, ring_slots

_BURST = 8
_FUNCTION = "probe_ring_load"
_VCPUS = (2, 16, 64)
_N_RINGS = sum(event.recorded for event in EVENTS)  # the most that a kernel can have
_RATES = (
    0.1e6,
    0.2e6,
    0.4e6,
    0.6e6,
    0.8e6,
    1.2e6,
    1.6e6,
    2.0e6,
    2.5e6,
    3.0e6,
    3.5e6,
    4e6,
    5e6,
    6e6,
    8e6,
)
_SECONDS = 0.4
_REPEATS = 2
_TICK_S = 0.0005
_ORDER = struct.Struct("dd")


@dataclass(frozen=True)
class Load:
    """The result of one trial at one rate."""

    rate: float
    lost: int
    longest_gap_s: float


def rings() -> Report:
    """Increase the rate until records are lost, with the rings and the drains of a run."""
    rows: list[Sequence[object]] = []
    series: list[Series] = []
    for n_vcpus, expected in itertools.product(_VCPUS, (True, False)):
        n_slots = ring_slots(n_vcpus, _N_RINGS)
        with _Producer() as producer, producer.rings(n_slots) as reader:
            best, first_loss = _search(producer, reader, expected=expected)
        what = "the storm's own IPIs" if expected else "other events"
        limit = _limit(first_loss, n_slots)
        rows.append((n_vcpus, f"{n_slots:,}", what, f"{best.rate / 1e6:.2f}", limit))
        series.append(Series(f"no-loss rate {n_vcpus} vCPUs {what}", PER_SECOND, [best.rate]))
    return Report(
        "No-loss rate of a ring",
        ("vCPUs", "slots", "cause", "million events/s", "limited by"),
        rows,
        (
            f"A process on one CPU makes system calls; our code writes {_BURST} records at each.",
            "This process drains with the tracer's reader, on any other CPU.",
            "The slots and the times of the drains are those of `run` for a VM of this size. It",
            "knows the rate of the storm's own IPIs before the storm, and adapts to other events.",
            f"The highest rate without a loss in {_REPEATS} trials of {_SECONDS} s each.",
        ),
        series,
    )


def _search(
    producer: "_Producer", reader: RingReader, *, expected: bool
) -> tuple[Load, Load | None]:
    """The best trial without a loss, and the first trial with one."""
    best = Load(0.0, 0, 0.0)
    for rate in _RATES:
        known_rate = rate if expected else 0.0
        trials = [_trial(producer, reader, rate, known_rate) for _ in range(_REPEATS)]
        lossy = next((trial for trial in trials if trial.lost), None)
        if lossy is not None:
            return best, lossy
        best = max(best, *trials, key=lambda trial: trial.rate)
    return best, None


def _trial(producer: "_Producer", reader: RingReader, rate: float, known_rate: float) -> Load:
    pace = DrainPace(reader.n_slots, known_rate)
    reader.drain()
    pause_s = pace.drained(0, time.monotonic())
    written, lost = int(reader.seen().sum()), int(reader.lost.sum())
    producer.start(rate, _SECONDS)
    last_s, longest_s = time.perf_counter(), 0.0
    while not producer.finished():
        time.sleep(pause_s)
        reader.drain()
        pause_s = pace.drained(reader.fullest, time.monotonic())
        now_s = time.perf_counter()
        last_s, longest_s = now_s, max(longest_s, now_s - last_s)
    reader.drain()
    made = int(reader.seen().sum()) - written
    return Load(made / producer.took_s, int(reader.lost.sum()) - lost, longest_s)


def _limit(first_loss: Load | None, n_slots: int) -> str:
    if first_loss is None:
        return "the producer: this is its highest rate"
    gap_ms = first_loss.longest_gap_s * 1000
    held = first_loss.rate * first_loss.longest_gap_s
    if held > n_slots:
        return (
            f"the ring: {gap_ms:.1f} ms between drains at {first_loss.rate / 1e6:.2f} M/s fill it"
        )
    return f"the reader: overtaken while copying at {first_loss.rate / 1e6:.2f} M/s"


class _Producer:
    """A forked process that makes system calls at a given rate, on a CPU of its own."""

    def __init__(self) -> None:
        self.took_s = 0.0
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        cpus = sorted(os.sched_getaffinity(0))
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            os.sched_setaffinity(0, {cpus[-1]})
            while order := os.read(orders, _ORDER.size):
                os.write(answers, struct.pack("d", _produce(*_ORDER.unpack(order))))
            os._exit(0)
        os.close(orders)
        os.close(answers)
        os.set_blocking(self._answers, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self._pid, 0)

    def start(self, rate: float, seconds: float) -> None:
        """Begin to write `rate` records per second."""
        os.write(self._orders, _ORDER.pack(rate / _BURST, seconds))

    def finished(self) -> bool:
        """Whether it has ended; `took_s` is then the time that it took."""
        try:
            answer = os.read(self._answers, 8)
        except BlockingIOError:
            return False
        (self.took_s,) = struct.unpack("d", answer)
        return True

    @contextmanager
    def rings(self, n_slots: int) -> Iterator[RingReader]:
        """A ring that the producer's system calls fill, and its reader."""
        directory = resources.bpf_dir()
        here = Path(__file__).parent / "ring_load.bpf.c"
        text = (directory / "ring.bpf.c").read_text() + here.read_text()
        flags = [f"-I{directory}", "-DN_ROWS=1", "-DN_RINGS=1", f"-DN_SLOTS={n_slots}"]
        flags += [f"-DBURST={_BURST}", "-DHOST_ISA=0"]
        with ExitStack() as stack:
            bpf = compile_programs(
                text, flags, directory, {"vcpu_of_tid": n_tids() // TIDS_PER_CELL}
            )
            stack.callback(bpf.close)
            bpf.load(_FUNCTION, "raw")
            tids = mapped(bpf["vcpu_of_tid"].map_fd, VCPU_OF_TID, n_tids() // TIDS_PER_CELL)
            tids["vcpu_plus_1"].reshape(-1)[self._pid] = 1
            slots = mapped(bpf["slots"].map_fd, RING_EVENT, n_slots)
            heads = mapped(bpf["heads"].map_fd, RING_HEAD, 1)
            bpf.attach(_FUNCTION, "sys_enter")
            yield RingReader(slots.reshape(1, 1, n_slots), heads.reshape(1, 1))
            bpf.detach(_FUNCTION)


def _produce(calls_per_s: float, seconds: float) -> float:
    """Make system calls at this rate, some in each half millisecond; returns the time it took."""
    call, clock = os.getppid, time.perf_counter
    started_s = clock()
    made = 0
    while (elapsed_s := clock() - started_s) < seconds:
        due = int((elapsed_s + _TICK_S) * calls_per_s)
        for _ in range(min(due - made, 4096)):
            call()
        made = max(made, due)
        while clock() - started_s < elapsed_s + _TICK_S:
            pass
    return clock() - started_s
