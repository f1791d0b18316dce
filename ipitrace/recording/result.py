# SPDX-License-Identifier: Apache-2.0
"""What a run found, as plain data, and as the text of run.json.

That text is described by schemas/run.schema.json, which tests validate against.

History of SCHEMA_VERSION:
    1  first version; `seed`, `disturbances` and `limits` were added later, and may be absent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ipitrace.base.loading import load, unload
from ipitrace.recording.guest import GuestResult
from ipitrace.recording.host import HostResult

SCHEMA_VERSION = 1
_LATER_KEYS = {"disturbances", "limits"}  # of version 1, too, and left out where they are None


@dataclass(frozen=True)
class Summary:
    """A distribution of whole cycles. Every figure is one that was really measured."""

    count: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class Exits:
    """VM exits per IPI by reason: the sender's per send, the targets' per delivery.

    Attributes:
        source: where the counts come from; None when nothing could count them.
        sender: reason to exits per send.
        target: reason to exits per delivery, over all targets; None for self IPIs,
            whose sender is the target.
    """

    source: str | None
    sender: Mapping[str, float] | None
    target: Mapping[str, float] | None


@dataclass(frozen=True)
class PerSide:
    """A count per IPI, the sender's per send and the targets' per delivery."""

    sender: float
    target: float


@dataclass(frozen=True)
class StageStep:
    """One stage of the sequence most IPIs of a scenario followed.

    Attributes:
        side: whose vCPU it happens on, `sender` or `target`.
        spans: how many of those IPIs have it.
        since_send_cycles: median from the send.
        step_cycles: median from the stage before it on the interrupt's way; None for
            stages beside that way.
        share_of_deliver: the part of all D spent in this step; None likewise.
        resolved: False when the step is shorter than the clock's error bound, so that
            its length is not known.
    """

    stage: str
    side: str
    spans: int
    since_send_cycles: int
    step_cycles: int | None
    share_of_deliver: float | None
    resolved: bool


@dataclass(frozen=True)
class StageSequence:
    """Stages in the order some IPIs went through them, and how many did."""

    stages: tuple[str, ...]
    spans: int


@dataclass(frozen=True)
class StageBreakdown:
    """Where D goes.

    Attributes:
        spans: deliveries broken down.
        bound_cycles: the error bound of a host event's place on the guest's clock.
        sequences: the most frequent, dominant first, at most three.
        steps: the dominant sequence's, in order of their medians.
    """

    spans: int
    bound_cycles: int
    sequences: tuple[StageSequence, ...]
    steps: tuple[StageStep, ...]


@dataclass(frozen=True)
class ExitTime:
    """How long exits of one reason took on one side.

    Attributes:
        exits: how many there were.
        unpaired: those of them that no kvm_entry ended.
        p50_cycles: from kvm_exit to kvm_entry; None when all are unpaired.
        share_of_deliver: the part of all D that they cover.
    """

    side: str
    reason: str
    exits: int
    unpaired: int
    p50_cycles: int | None
    p99_cycles: int | None
    share_of_deliver: float


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of one repetition, in cycles: measured values, never interpolated.

    With fewer than 1000 values `p999` is the largest of them.
    """

    p50: int
    p90: int
    p99: int
    p999: int


@dataclass(frozen=True)
class RepetitionFigures:
    """What one repetition found; comparisons are made of these.

    Attributes:
        order: which fresh guest of the run it was, as `repetition` in the tables.
        mode: what watched it: off, counting or full.
        sent: measured sends.
        send_cycles: S; deliver_cycles: D; round_trip_cycles: R; None when no IPI got there.
        exits: per IPI, by reason.
        paths: the share of IPIs that took each path; None unless the mode was full.
    """

    order: int
    mode: str
    sent: int
    send_cycles: Percentiles | None
    deliver_cycles: Percentiles | None
    round_trip_cycles: Percentiles | None
    exits: Exits | None
    paths: Mapping[str, float] | None


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario's row.

    Attributes:
        status: `measured`, or `unsupported` and then `reason` says why.
        sent: sends made (a broadcast is one).
        delivered: handler entries, counted by the handlers themselves.
        coalesced: deliveries asked for that no handler saw and that did not time out.
        incomplete: sends not acknowledged in time.
        send_cycles: S; deliver_cycles: D; round_trip_cycles: R.
        kvm_stats: KVM's other counters per IPI, by name.
        events_per_ipi: host tracepoints per IPI, by name.
        paths: the share of IPIs that took each path, by its name.
        stages: where D goes.
        exit_times: how long exits took, by side and reason.
        late_posts: posted-interrupt notifications that reached a CPU outside guest mode,
            by their row in /proc/interrupts, over all CPUs and the recorded repetitions.
        host_interrupts: rows of /proc/interrupts (posted, reschedule and call-function
            interrupts) to CPU to increase over the recorded repetitions, warm-up included.
        unmatched_ipis: deliveries for which no host event was found.
        unmatched_events: events with the IPIs' vector that belong to none, by tracepoint.
        suspect_spans: deliveries around which the guest's TSC offset changed.
        repetition_figures: each repetition's own, in every mode, in the order run.
        absent: for each field that is null, why.
        notes: what a reader should know before trusting the row.
    """

    name: str
    pattern: str
    target_state: str
    send_method: str
    status: str
    reason: str | None = None
    targets: int = 0
    pace_cycles: int = 0
    warmup: int = 0
    repetitions: int = 0
    sent: int = 0
    delivered: int = 0
    coalesced: int = 0
    incomplete: int = 0
    send_cycles: Summary | None = None
    deliver_cycles: Summary | None = None
    round_trip_cycles: Summary | None = None
    exits: Exits | None = None
    kvm_stats: Mapping[str, PerSide] | None = None
    events_per_ipi: Mapping[str, PerSide] | None = None
    paths: Mapping[str, float] | None = None
    stages: StageBreakdown | None = None
    exit_times: tuple[ExitTime, ...] | None = None
    late_posts: Mapping[str, int] | None = None
    host_interrupts: Mapping[str, Mapping[str, int]] | None = None
    unmatched_ipis: int = 0
    unmatched_events: Mapping[str, int] | None = None
    suspect_spans: int = 0
    repetition_figures: tuple[RepetitionFigures, ...] = ()
    absent: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A median of paired differences, and its confidence interval, in cycles."""

    median: int
    low: int
    high: int


@dataclass(frozen=True)
class ObserverCost:
    """How far one metric's median moved because we watched.

    Attributes:
        off_p50: the median of the repetitions' medians with all probes detached, in cycles.
        counting_p50: with all attached and only counting; full_p50: recording as well.
        counting: counting minus off, repetition by repetition.
        full: recording minus off.
    """

    off_p50: int
    counting_p50: int
    full_p50: int
    counting: Difference
    full: Difference


@dataclass(frozen=True)
class Observer:
    """What watching cost, per scenario and metric, and how that was found out.

    Attributes:
        method: how the repetitions alternate.
        repetitions: of each scenario in each mode.
        confidence: of the intervals; order statistics make it exact.
        costs: scenario name to metric (send, deliver, round_trip) to cost.
        setup_seconds: from nothing to programs loaded.
        attach_seconds: to attach them all once.
        hooks: tracepoint to how it is hooked.
        left_out: tracepoint to why it was not watched.
    """

    method: str
    repetitions: int
    confidence: float
    costs: Mapping[str, Mapping[str, ObserverCost]]
    setup_seconds: float
    attach_seconds: float
    hooks: Mapping[str, str]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class ClockResult:
    """The run's clocks.

    Attributes:
        tsc_hz: the TSC's measured rate, or KVM's figure where it could not be measured.
        tsc_error_hz: the measurement's bound; None when the rate was not measured.
        source: where tsc_hz comes from.
        kvm_tsc_khz: the guest TSC's rate as KVM states it.
        guest_tsc_offset: guest minus host TSC as KVM states it.
        sandwiches: how many readings of both clocks there were.
        sandwiches_rejected: those not used because something came in between.
        half_width_cycles: the error bound of the worst used one, also in ns.
        bound_cycles: the error bound of a host event's place on the guest's clock, the
            worst of the run, also in ns; None when nothing was put there.
        drift_ppm: the largest change of one clock's rate against the other's.
        drift_noise_ppm: how much of that the readings' own errors could make.
        causality_violations: effects before their causes by more than the bound, by kind.
    """

    tsc_hz: float | None
    tsc_error_hz: float | None
    source: str | None
    kvm_tsc_khz: int | None
    guest_tsc_offset: int | None
    sandwiches: int
    sandwiches_rejected: int
    half_width_cycles: float | None
    half_width_ns: float | None
    bound_cycles: int | None
    bound_ns: float | None
    drift_ppm: float | None
    drift_noise_ppm: float | None
    causality_violations: Mapping[str, int]


@dataclass(frozen=True)
class Losses:
    """Everything that happened and was not recorded.

    Attributes:
        events_seen: host events that passed the filter, over the whole run.
        ring_overruns: tracepoint to events that user space was too late for.
        recursion_misses: tracepoint to times the kernel skipped the program because
            it was already running on that CPU; None where the kernel does not count.
        incomplete_ipis: IPIs not acknowledged in time.
        unpaired_receipts: handler entries that belong to no send.
    """

    events_seen: int
    ring_overruns: Mapping[str, int]
    recursion_misses: Mapping[str, int | None]
    incomplete_ipis: int
    unpaired_receipts: int

    @property
    def events_lost(self) -> int:
        """Events known to be lost in the rings or skipped by the kernel."""
        misses = (n or 0 for n in self.recursion_misses.values())
        return sum(self.ring_overruns.values()) + sum(misses)


@dataclass(frozen=True)
class Disturbance:
    """Something that was otherwise than it should be while repetitions ran.

    Attributes:
        kind: `moved`, `stopped`, `suspended`, `waited`, `late`, `stolen`, `frequency`,
            `throttled`, `hotplug`, `neighbour` or `run`.
        says: what was seen, in words.
        worthless: it makes the numbers worthless; otherwise it only speaks against them.
        share: the part of the storm's time that it took; None where it took none.
        scenario: of the repetition after which it was seen; None: before the first one.
        repetition: that repetition, as `order` in the figures and `repetition` in the tables.
        mode: its mode.
    """

    kind: str
    says: str
    worthless: bool
    share: float | None = None
    scenario: str | None = None
    repetition: int | None = None
    mode: str | None = None


@dataclass(frozen=True)
class RunLimits:
    """What the storms were kept to; None is no limit.

    Attributes:
        max_rate_hz: sends per second, in any storm.
        max_time_s: all storms together.
        by_default: nobody asked for either: they are what holds for a VM that is not ours.
    """

    max_rate_hz: float | None
    max_time_s: float | None
    by_default: bool


@dataclass(frozen=True)
class TableInfo:
    """One Parquet table of a recording.

    Attributes:
        columns: each column and what it means.
    """

    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class RunResult:
    """One run of `ipitrace run`.

    Attributes:
        complete: every scenario asked for was finished.
        failure: what ended the run early, when something did.
        untrustworthy: why the numbers should not be relied on; empty when they may be.
        tables: the Parquet tables beside run.json, by name.
        seed: what the order of the scenarios was shuffled with.
        disturbances: what was looked for after each repetition and found; None in recordings
            from before anybody looked.
        limits: of rate and time; None where there were none.
    """

    ipitrace_version: str
    started_at: str
    duration_seconds: float
    command: tuple[str, ...]
    complete: bool
    failure: str | None
    untrustworthy: tuple[str, ...]
    host: HostResult
    guest: GuestResult
    clock: ClockResult
    losses: Losses
    observer: Observer | None
    observer_absent: str | None
    scenarios: tuple[ScenarioResult, ...]
    tables: Mapping[str, TableInfo] = field(default_factory=dict)
    seed: int | None = None
    disturbances: tuple[Disturbance, ...] | None = None
    limits: RunLimits | None = None

    @property
    def emulator(self) -> str | None:
        """What emulates the run's host, or its guest; None of real ones."""
        fingerprint = self.host.fingerprint
        return (None if fingerprint is None else fingerprint.emulated) or self.guest.emulated

    @property
    def kernel_release(self) -> str | None:
        """The host's."""
        return None if self.host.fingerprint is None else self.host.fingerprint.kernel_release

    def to_dict(self) -> dict[str, Any]:
        """The run as run.json holds it; older recordings stay what they were."""
        plain = {"schema_version": SCHEMA_VERSION, **unload(self)}
        return {k: v for k, v in plain.items() if v is not None or k not in _LATER_KEYS}

    def to_json(self) -> str:
        """run.json's text; the same run gives the same text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The run that to_dict() or run.json made `data` of.

        Raises:
            ValueError: a key too many, one too few, or a value of the wrong type.
        """
        return load(cls, {key: value for key, value in data.items() if key != "schema_version"})
