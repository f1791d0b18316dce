# SPDX-License-Identifier: Apache-2.0
"""Decides whether a run's numbers can be trusted: clocks, losses and contradictions."""

from collections.abc import Iterator, Mapping, Sequence

from ipitrace.base.errors import MeasurementError
from ipitrace.base.units import cycles_to_ns
from ipitrace.clock import HostClockMap, Sandwich, measure_frequency, tsc_went_backwards
from ipitrace.recording.result import ClockResult, Losses

LOSS_LIMIT = 0.001
"""The share of lost events, or of incomplete or contradictory IPIs, that is still accepted."""


def clock_result(
    sandwiches: Sequence[Sandwich],
    *,
    tsc_khz: int | None,
    tsc_offset: int | None,
    bound_cycles: int,
    violations: Mapping[str, int],
    scale: float = 1.0,
    stated_by: str = "KVM_GET_TSC_KHZ",
) -> ClockResult:
    """The result of the run's readings of both host clocks.

    Args:
        sandwiches: in the order read; empty if the guest's TSC does not follow from this
            host's.
        tsc_khz: the guest TSC's rate as KVM, or the guest, states it.
        tsc_offset: the guest TSC's offset as KVM states it.
        bound_cycles: the largest error bound of a host event on the guest's clock, or 0.
        violations: effects before their causes, by kind.
        scale: guest cycles per host cycle.
        stated_by: the source of tsc_khz.
    """
    frequency = measure_frequency(sandwiches)
    hz = frequency.hz * scale if frequency else tsc_khz and tsc_khz * 1000.0
    used = _map_of(sandwiches)
    drift = used.drift() if used else None
    half_width = used.max_half_width_cycles if used else None
    return ClockResult(
        tsc_hz=hz,
        tsc_error_hz=frequency.error_hz * scale if frequency else None,
        source=_source(hz, stated_by, measured=frequency is not None),
        kvm_tsc_khz=tsc_khz,
        guest_tsc_offset=tsc_offset,
        sandwiches=len(sandwiches),
        sandwiches_rejected=used.rejected if used else 0,
        half_width_cycles=half_width,
        half_width_ns=cycles_to_ns(half_width, hz) if half_width is not None and hz else None,
        bound_cycles=bound_cycles or None,
        bound_ns=cycles_to_ns(bound_cycles, hz) if bound_cycles and hz else None,
        drift_ppm=drift.rate_change_ppm if drift else None,
        drift_noise_ppm=drift.noise_ppm if drift else None,
        causality_violations={
            "tsc_backwards": int(tsc_went_backwards(sandwiches)),
            **violations,
        },
    )


def _map_of(sandwiches: Sequence[Sandwich]) -> HostClockMap | None:
    try:
        return HostClockMap.build(sandwiches)
    except MeasurementError:
        return None


def _source(hz: float | None, stated_by: str, *, measured: bool) -> str | None:
    if hz is None:
        return None
    return "measured against CLOCK_MONOTONIC" if measured else stated_by


def doubts(
    losses: Losses, clock: ClockResult, *, all_sends: int, recorded_sends: int
) -> Iterator[str]:
    """Yield the reasons not to rely on the numbers.

    Args:
        losses: of the whole run.
        clock: of the whole run.
        all_sends: of all repetitions, warm-up included. Any of them may be incomplete.
        recorded_sends: of the repetitions from which the rows are made. Contradictions of the
            clocks are compared with this number.
    """
    if losses.events_lost > LOSS_LIMIT * max(losses.events_seen, 1):
        yield f"{losses.events_lost} of {losses.events_seen} host events were lost"
    if losses.incomplete_ipis > LOSS_LIMIT * all_sends:
        yield f"{losses.incomplete_ipis} IPIs were not acknowledged in time"
    for kind, n in clock.causality_violations.items():
        if n > LOSS_LIMIT * recorded_sends:
            yield f"the clocks contradict each other: {kind} {n} times"
