# SPDX-License-Identifier: Apache-2.0
"""Puts the host events of one storm on the guest's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.base.errors import MeasurementError
from ipitrace.clock import (
    GuestTsc,
    HostClockMap,
    Sandwich,
    Span,
    count_violations,
    offset_changes,
    own_guest_tsc,
)
from ipitrace.correlate.spans import Spans, StormTrace
from ipitrace.correlate.stamps import ABSENT
from ipitrace.storm.driver import Driver, Storm, StormRequest
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import SENDER
from ipitrace.words.stages import Stage

# Name of the violation to (cause, effect). The first two are one thread's own events.
_CAUSES: Final = {
    "ipi_before_send": (Stage.SEND, Stage.IPI),
    "handler_before_accept": (Stage.ACCEPT, Stage.HANDLER),
    "handler_before_inject": (Stage.INJECT, Stage.HANDLER),
    "sent_before_icr_write": (Stage.ICR_WRITE, Stage.SENT),
    "ack_before_handler": (Stage.HANDLER, Stage.ACK),
}


@dataclass(frozen=True)
class HostRecord:
    """The data that the host recorded about one storm.

    Attributes:
        events: host events, in any order (dtype abi.HOST_EVENT).
        complete: no event was lost.
        during: a time that contains the storm; None if no clock was read.
        sandwiches: readings of both host clocks, including those before the storm.
        resolution_ns: the resolution of the events' stamps.
        stages_only: see StormTrace.
    """

    events: NDArray[np.void]
    complete: bool
    during: Span | None
    sandwiches: Sequence[Sandwich]
    resolution_ns: int
    stages_only: bool = False


def on_one_clock(
    request: StormRequest, guest: Driver, storm: Storm, host: HostRecord
) -> StormTrace:
    """Put the host events of the measured window on the guest's clock.

    If the driver took a snapshot at both edges, these define the window. Otherwise the window
    lasts from the first measured send to the guest's last stamp, by the guest's own stamps.

    Raises:
        MeasurementError: this is not possible; the message gives the reason.
    """
    events = host.events
    host_map = HostClockMap.build(host.sandwiches, host.resolution_ns)
    guest_tsc = _guest_tsc(storm, host_map.cycles_per_ns * 1e9)

    def to_guest(ts_ns: object) -> NDArray[np.int64]:
        mapped: NDArray[np.int64] = guest_tsc.to_guest(host_map.to_tsc(ts_ns)).view(np.int64)  # type: ignore[arg-type]
        return mapped

    def bound_of(stamps: NDArray[np.int64]) -> int:
        return int(np.ceil(host_map.bound_cycles(stamps).max(initial=0.0) * guest_tsc.scale))

    stamps = events["ts_ns"]
    if storm.start is not None and storm.end is not None:
        window = (storm.start.ts_ns, storm.end.ts_ns)
        inside = (stamps >= window[0]) & (stamps <= window[1])
    else:
        window = host.during or (0, 0)
        low, high = _edges(storm)
        slack = bound_of(np.array([*window, *stamps]))
        tsc = to_guest(stamps)
        inside = (tsc >= low - slack) & (tsc <= high + slack)
    measured = events[inside]
    writes = events[events["kind"] == Kind.KVM_WRITE_TSC_OFFSET]["ts_ns"]
    changes = [
        change
        for start, end in zip(storm.tsc_offsets_start, storm.tsc_offsets_end, strict=True)
        for change in offset_changes(start, end, window, [int(w) for w in writes])
    ]
    if len(set(storm.tsc_offsets_start)) > 1:
        raise MeasurementError("The vCPUs' TSC offsets differ.", "Boot with a stable TSC.")
    return StormTrace(
        sends=storm.sends,
        receipts=storm.receipts,
        sender=SENDER,
        targets=guest.targets(request.scenario),
        vector=storm.vector,
        events=measured,
        event_tsc=to_guest(measured["ts_ns"]),
        bound_cycles=bound_of(np.array([*window, *measured["ts_ns"]])),
        cpus=guest.cpus_in(request.scenario),
        complete=host.complete,
        exits_fire=bool((events["kind"] == Kind.KVM_EXIT).any()),
        suspect=[(int(low), int(high)) for low, high in (to_guest(np.array(c)) for c in changes)],
        apic_ids=guest.apic_ids,
        stages_only=host.stages_only,
    )


def _guest_tsc(storm: Storm, host_hz: float) -> GuestTsc:
    """The conversion from the host's TSC to the guest's.

    Raises:
        MeasurementError: it is unknown.
    """
    if storm.tsc_offset is not None and storm.tsc_ratio is not None:
        return GuestTsc(storm.tsc_offset, *storm.tsc_ratio)
    tsc, reason = own_guest_tsc(storm.tsc_offset, storm.tsc_khz, host_hz)
    if tsc is None:
        raise MeasurementError(f"The guest's TSC is not known: {storm.no_tsc or reason}.", "")
    return tsc


def _edges(storm: Storm) -> tuple[int, int]:
    """The first measured send, and the guest's last stamp of the storm."""
    stamps = [storm.sends["sent_tsc"], storm.sends["ack_tsc"]]
    stamps += [receipts[name] for receipts in storm.receipts for name in ("handler_tsc", "eoi_tsc")]
    last = max(int(s.astype(np.int64).max()) for s in stamps if len(s))
    return int(storm.sends["send_tsc"].astype(np.int64).min()), last


def violations(spans: Spans, bound_cycles: int) -> dict[str, int]:
    """Effects before their causes by more than the bound, by kind."""
    pairs = {}
    for name, (earlier, later) in _CAUSES.items():
        both = (spans.stage(earlier) != ABSENT) & (spans.stage(later) != ABSENT)
        pairs[name] = (spans.stage(earlier)[both], spans.stage(later)[both])
    return count_violations(pairs, bound_cycles)
