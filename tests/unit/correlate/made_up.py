# SPDX-License-Identifier: Apache-2.0
"""Made-up traced storms of every kind of host, with every IPI's true story beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from host_models import MODELS, VECTOR, Happening, Ipi, cpu_of
from hypothesis import strategies as st
from numpy.typing import NDArray

from ipitrace.abi.events import HOST_EVENT
from ipitrace.abi.storm import RECEIPT, SEND
from ipitrace.correlate.spans import Spans, StormTrace
from ipitrace.correlate.stamps import ABSENT
from ipitrace.words.events import Kind
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import Stage


@dataclass(frozen=True)
class Story:
    """A trace, and what is true of it.

    Attributes:
        made_by: the call of tell() that makes it again.
        happenings: the trace's events, in its order.
        tsc: as Spans.tsc, and so on.
        over: when everything about an IPI had happened, host events included; one a send.
    """

    name: str
    made_by: str
    trace: StormTrace = field(repr=False)
    happenings: tuple[Happening, ...] = field(repr=False)
    tsc: NDArray[np.int64] = field(repr=False)
    path: NDArray[np.int8] = field(repr=False)
    sender_exits: NDArray[np.int64] = field(repr=False)
    target_exits: NDArray[np.int64] = field(repr=False)
    over: NDArray[np.int64] = field(repr=False)

    def with_events(self, happenings: Sequence[Happening], **changed: object) -> StormTrace:
        """The trace with other events."""
        events, tsc = records(happenings)
        return replace(self.trace, events=events, event_tsc=tsc, **changed)  # type: ignore[arg-type]


def records(happenings: Sequence[Happening]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Host events as the tracer hands them on."""
    events = np.zeros(len(happenings), HOST_EVENT)
    for i, happening in enumerate(happenings):
        for name in ("kind", "vcpu", "detail", "word", "arg"):
            events[i][name] = getattr(happening, name)
        events[i]["cpu"] = cpu_of(happening.vcpu)
    return events, np.array([h.tsc for h in happenings], np.int64)


def tell(
    name: str,
    n: int,
    seed: int,
    *,
    base: int = 1 << 40,
    targets: int = 1,
    pace: int = 2_000,
    bound: int = 0,
    pinned: bool = True,
    lost: frozenset[int] = frozenset(),
) -> Story:
    """A storm of `n` sends on a host like MODELS[name].

    Args:
        base: TSC of the first send.
        pace: cycles from one IPI's end to the next send.
        lost: sends whose IPI never reached a target, and was not acknowledged; not of a
            sender to itself.
    """
    model = MODELS[name]
    rng = np.random.default_rng(seed)
    to = (0,) if model.target is None else tuple(range(1, targets + 1))
    sends = np.zeros(n, SEND)
    logs: dict[int, list[tuple[int, int]]] = {vcpu: [] for vcpu in range(max(to) + 1)}
    tsc = np.full((n, len(to), len(Stage)), ABSENT)
    happenings: list[Happening] = []
    over = np.zeros(n, np.int64)
    now = base
    for i in range(n):
        ipi = Ipi(i, rng, 0, to, now, last=i == n - 1)
        model.send(ipi)
        sent = ipi.now + int(rng.integers(100, 500))
        for target in to if model.target is not None else ():
            if i not in lost:
                ipi.now = ipi.wake[target]
                model.target(ipi, target)
        ack = max([sent, *ipi.eoi.values()]) + int(rng.integers(50, 500))
        sends[i] = (now % 2**64, sent % 2**64, 0 if i in lost else ack % 2**64, i + 100, 1, 0)
        for column, target in enumerate(to):
            for stage, stamp in ipi.stages.get(target, {}).items():
                tsc[i, column, stage] = stamp
            if target in ipi.handler:
                logs[target].append((ipi.handler[target], ipi.eoi[target]))
        tsc[i, :, [Stage.SEND, Stage.SENT, Stage.ACK]] = [
            [now],
            [sent],
            [ABSENT if i in lost else ack],
        ]
        happenings += ipi.happenings
        over[i] = max([ack, *(h.tsc for h in ipi.happenings)])
        # A window may begin in the middle between an acknowledgement and the next send: what
        # happens after the acknowledgement is over by then.
        now = 2 * int(over[i]) - ack + pace
    happenings.sort(key=lambda h: h.tsc)
    events, event_tsc = records(happenings)
    exits = [h for h in happenings if h.kind == Kind.KVM_EXIT]
    counts = np.zeros((max(to) + 1, n), np.int64)
    for h in exits:
        counts[h.vcpu, h.ipi] += 1
    if model.path == IpiPath.EMULATED:  # kvm_exit does not fire there: nobody knows
        counts[:] = ABSENT
    trace = StormTrace(
        sends=sends,
        receipts=tuple(map(_receipts, logs.values())),
        sender=0,
        targets=to,
        vector=VECTOR,
        events=events,
        event_tsc=event_tsc,
        bound_cycles=bound,
        cpus=tuple(cpu_of(vcpu) for vcpu in range(max(to) + 1)) if pinned else None,
        complete=True,
        exits_fire=model.path != IpiPath.EMULATED,
    )
    m = len(to)
    return Story(
        name,
        f"tell({name!r}, {n}, {seed}, {base=}, {targets=}, {pace=}, {bound=}, {pinned=}, {lost=})",
        trace,
        tuple(happenings),
        tsc.reshape(n * m, len(Stage)),
        np.full(n * m, model.path, np.int8),
        np.repeat(counts[0], m),
        counts[list(to)].T.reshape(-1),
        over,
    )


def _receipts(log: Sequence[tuple[int, int]]) -> NDArray[np.void]:
    receipts = np.zeros(len(log), RECEIPT)
    for i, (handler, eoi) in enumerate(log):
        receipts[i] = (handler % 2**64, eoi % 2**64, i)
    return receipts


SEEDS = st.integers(0, 2**32 - 1)
NAMES = st.sampled_from(sorted(MODELS))


@st.composite
def stories(draw: st.DrawFn, *, min_size: int = 1, names: Sequence[str] = ()) -> Story:
    """Storms of a few sends on any kind of host."""
    name = draw(st.sampled_from(sorted(names or MODELS)))
    pace = draw(st.integers(600, 60_000))
    return tell(
        name,
        draw(st.integers(min_size, 8)),
        draw(SEEDS),
        targets=draw(st.integers(1, 3)),
        pace=pace,
        bound=draw(st.integers(0, 30_000)),
        pinned=draw(st.booleans()),
    )


def same(found: Spans, expected: Spans) -> bool:
    """Byte for byte."""
    return all(
        getattr(found, name).tobytes() == getattr(expected, name).tobytes()
        for name in (
            "seq",
            "sender",
            "target",
            "path",
            "tsc",
            "sender_exits",
            "target_exits",
            "suspect",
        )
    )


def differences(found: NDArray[np.int64], expected: NDArray[np.int64]) -> list[str]:
    """Which stages of which rows differ, for a readable failure."""
    return [
        f"row {row} {Stage(column).name}: {_text(found[row, column])}, not "
        f"{_text(expected[row, column])}"
        for row, column in np.argwhere(found != expected)
    ]


def _text(stamp: int) -> str:
    return "absent" if stamp == ABSENT else str(stamp)
