# SPDX-License-Identifier: Apache-2.0
"""One IPI: all that was recorded between its send and its last stage, in order of time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain, plain_values
from ipitrace.base.units import cycles_to_ns
from ipitrace.render.grid import fill, table
from ipitrace.words.events import HOST_EVENT_BY_NAME
from ipitrace.words.stages import STAGES

Row = Mapping[str, Any]
"""One row of a recording's table, by column."""

STAGE_END: Final = "_tsc"
_NOTHING = "-"
_UNKNOWN = "?"
_UNWATCHED = "unwatched"

# The stages that the guest stamps, and the vCPU that stamps each; all others are host events.
_GUEST_STAGES: Final = {spec.name: spec.side for spec in STAGES if spec.guest}


@dataclass(frozen=True)
class Timeline:
    """All recorded data of one IPI.

    Attributes:
        span: its row of `spans`.
        before: the row of the IPI before it in the same repetition; None for the first.
        after: the row of the IPI after it; None for the last.
        events: rows of `host_events` inside window(span), on any vCPU.
        without_weight: stage to guest TSC as if nothing had been traced; None if not known.
    """

    span: Row
    before: Row | None
    after: Row | None
    events: Sequence[Row]
    without_weight: Mapping[str, int] | None = None


def stages_of(span: Row) -> dict[str, int]:
    """The stages that were recorded, each with its guest TSC."""
    return {
        column.removesuffix(STAGE_END): tsc
        for column, tsc in span.items()
        if column.endswith(STAGE_END) and tsc is not None
    }


def window(span: Row) -> tuple[int, int]:
    """The guest TSC of the first and of the last stage of an IPI."""
    stamps = stages_of(span).values()
    return min(stamps), max(stamps)


def render_timeline(
    timeline: Timeline, tsc_hz: float | None, emulator: str | None, width: int = PIPE_WIDTH
) -> str:
    """The IPI as text.

    Args:
        timeline: the IPI.
        tsc_hz: the rate of the TSC; None where it is not known.
        emulator: what emulates the host or the guest; None on real hardware.
        width: of the terminal, in columns.
    """
    timeline = plain_values(timeline)
    span = timeline.span
    stages = stages_of(span)
    ours = [e for e in timeline.events if e["vcpu"] in {None, span["sender"], span["target"]}]
    lines = [
        *_guest_lines(span, stages),
        *(_event_line(event, stages) for event in ours),
        *_unseen_lines(stages, ours),
    ]
    lines.sort(key=lambda line: line.tsc)
    send_tsc = span["send_tsc"]
    cells: list[tuple[str, ...]] = [
        (
            f"{line.tsc - send_tsc:+d}",
            _ns(line.tsc - send_tsc, tsc_hz),
            line.vcpu,
            line.cpu,
            line.stage,
            line.what,
        )
        for line in lines
    ]
    headers: tuple[str, ...] = ("cycles", "ns", "vCPU", "CPU", "stage", "what")
    text = (4, 5)
    if (lighter := timeline.without_weight) is not None:
        headers = (*headers[:2], _UNWATCHED, *headers[2:])
        text = (5, 6)
        cells = [
            (*cell[:2], _since(lighter, line.stage, send_tsc), *cell[2:])
            for cell, line in zip(cells, lines, strict=True)
        ]
    asides = _asides(timeline, len(ours), tsc_hz, emulator)
    sections = [
        fill(_header(span), width),
        table(headers, cells, text=text, width=width),
        *(fill(aside, width) for aside in asides),
    ]
    return "\n".join(sections) + "\n"


def _since(stages: Mapping[str, int], names: str, send_tsc: int) -> str:
    """Cycles since the send of the first of these stages; nothing for an event of no stage."""
    found = [stages[name] for name in names.split(", ") if name in stages]
    return f"{found[0] - send_tsc:+d}" if found else ""


@dataclass(frozen=True)
class _Line:
    tsc: int
    vcpu: str
    cpu: str
    stage: str
    what: str


def _header(span: Row) -> str:
    return (
        f"IPI {span['ipi']}: {span['scenario']}, repetition {span['repetition']}, send "
        f"{span['seq']}, vCPU {span['sender']} to vCPU {span['target']}, path {span['path']}"
    )


def _guest_lines(span: Row, stages: Mapping[str, int]) -> Iterable[_Line]:
    for name, side in _GUEST_STAGES.items():
        if name in stages:
            yield _Line(stages[name], f"{span[side]}", _NOTHING, name, "in the guest")


def _event_line(event: Row, stages: Mapping[str, int]) -> _Line:
    names = [
        name for name, tsc in stages.items() if tsc == event["tsc"] and name not in _GUEST_STAGES
    ]
    vcpu = _UNKNOWN if event["vcpu"] is None else f"{event['vcpu']}"
    what = f"{event['kind']} {_values(event)}".strip()
    return _Line(event["tsc"], vcpu, f"{event['cpu']}", ", ".join(names), what)


def _unseen_lines(stages: Mapping[str, int], events: Sequence[Row]) -> Iterable[_Line]:
    """Host stages whose event is not in the table; they are shown without the event."""
    seen = {event["tsc"] for event in events}
    for name, tsc in stages.items():
        if name not in _GUEST_STAGES and tsc not in seen:
            yield _Line(tsc, _UNKNOWN, _UNKNOWN, name, "(its event is not recorded)")


def _values(event: Row) -> str:
    arg, word, detail = event["arg"], event["word"], event["detail"]
    known = HOST_EVENT_BY_NAME.get(event["kind"])
    if known is None:  # of a newer version
        return f"arg {arg:#x}, word {word:#x}, detail {detail or 0:#x}"
    return known.describe(arg, word, detail)


def _asides(
    timeline: Timeline, shown: int, tsc_hz: float | None, emulator: str | None
) -> Iterable[str]:
    send_tsc = timeline.span["send_tsc"]
    yield ""
    if timeline.without_weight is not None:
        yield (
            f"{_UNWATCHED}: cycles without the usual weight of the probes in this scenario; that "
            "of one IPI may differ"
        )
    if emulator is not None:
        yield f"emulated by {plain(emulator)}: cycles are not real time"
    for word, other in (("before", timeline.before), ("after", timeline.after)):
        if other is None:
            yield f"{word}: none in this repetition"
            continue
        cycles = other["send_tsc"] - send_tsc
        yield (
            f"{word}: IPI {other['ipi']} to vCPU {other['target']}, sent at {cycles:+d} cycles "
            f"({_ns(cycles, tsc_hz)} ns), path {other['path']}"
        )
    elsewhere = len(timeline.events) - shown
    if elsewhere:
        plural = "s" if elsewhere > 1 else ""
        yield f"not shown: {elsewhere} event{plural} of other vCPUs at the same time"


def _ns(cycles: int, tsc_hz: float | None) -> str:
    return _NOTHING if not tsc_hz else f"{cycles_to_ns(cycles, tsc_hz):+.0f}"
