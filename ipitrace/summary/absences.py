# SPDX-License-Identifier: Apache-2.0
"""Reasons why figures of a row are null, and notes on a target's state."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.row import PerSide
from ipitrace.summary.interrupts import host_interrupts
from ipitrace.summary.storms import HostSide, Measured, Repetition
from ipitrace.words.interrupts import POSTED_ROWS
from ipitrace.words.metrics import DELIVER, TIMINGS
from ipitrace.words.scenarios import SENDERS_ONLY, Mode, Scenario, TargetState

_UNTRACED = "nothing was traced"
_NO_CLOCK = "host events could not be placed on the guest's clock"
_MOSTLY = 0.5
_NEARLY_ALL = 0.99
_OF_TRACED_ROWS = (
    "paths",
    "stages",
    "exit_times",
    "late_posts",
    "host_interrupts",
    "unmatched_events",
)


def absent_figures(
    measured: Measured, watched: Sequence[HostSide], stats: Mapping[str, PerSide] | None
) -> dict[str, str]:
    """The field name of each figure that is null, except exits, to the reason."""
    interrupts = host_interrupts(watched)
    storms = measured.headline
    reasons = {t.field: _nothing_of(getattr(r.cycles, t.name) for r in storms) for t in TIMINGS}
    if stats is None:
        reasons["kvm_stats"] = storms[0].no_stats
    traced = any(r.mode != Mode.OFF for r in measured.repetitions)
    why = _NO_CLOCK if traced else _UNTRACED
    if all(r.seen is None for r in measured.proving):
        reasons["events_per_ipi"] = why
    if not watched:
        return _known(reasons) | dict.fromkeys(_OF_TRACED_ROWS, why)
    staged = any(r.watched is not None for r in measured.of(Mode.STAGES))
    reasons["stages"] = reasons[DELIVER.field] if staged else _NO_CLOCK
    if not any(len(table.reason) for w in watched for table in w.exits):
        reasons["exit_times"] = (
            "there was no exit" if measured.kvm_exit_fires else "kvm_exit never fired"
        )
    if interrupts is None:
        reasons["host_interrupts"] = "/proc/interrupts cannot be read"
    if not any(row in POSTED_ROWS for row in interrupts or {}):
        reasons["late_posts"] = "/proc/interrupts has no rows for posted interrupts"
    return _known(reasons)


def target_notes(
    scenario: Scenario, storms: Sequence[Repetition], stats: Mapping[str, PerSide] | None
) -> Iterable[str]:
    """Notes where the guest or KVM's counters show another target state than the requested one."""
    as_asked = [r.as_asked for r in storms if r.as_asked is not None]
    if as_asked and (share := sum(as_asked) / len(as_asked)) < _NEARLY_ALL:
        yield f"only {share:.0%} of the IPIs found their target {scenario.target_state}"
    if scenario.pattern in SENDERS_ONLY or stats is None:
        return
    zero = PerSide(0.0, 0.0)
    halts = stats.get("halt_exits", zero).target
    polled = stats.get("halt_successful_poll", zero).target
    slept = stats.get("halt_wakeup", zero).target
    if scenario.target_state in {TargetState.HALTED, TargetState.BLOCKED}:
        if halts < _MOSTLY:
            yield f"the target was in HLT for only {halts:.0%} of the IPIs; use a larger --pace"
        elif scenario.target_state == TargetState.BLOCKED and slept < _MOSTLY:
            yield f"the target's thread slept for only {slept:.0%} of the IPIs; use a larger --pace"
        elif polled or slept:
            yield (
                f"the host was polling for the target for {polled:.0%} of the IPIs; the target's "
                f"thread slept for {slept:.0%}"
            )
    elif halts > _MOSTLY:
        yield "the target halted although it should have been running"


def _nothing_of(parts: Iterable[NDArray[np.int64]]) -> str | None:
    return None if any(len(part) for part in parts) else "no IPI reached this point"


def _known(reasons: Mapping[str, str | None]) -> dict[str, str]:
    return {name: why for name, why in reasons.items() if why is not None}
