# SPDX-License-Identifier: Apache-2.0
"""One scenario's row of a run, and its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipitrace.base.loading import LATER


@dataclass(frozen=True)
class Summary:
    """A distribution of whole cycles. Every figure is a measured value."""

    count: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class Histogram:
    """A distribution of cycles, from its minimum to its 90th percentile.

    Attributes:
        low: the minimum; high: the 90th percentile.
        counts: the number of values in each of equally wide parts of this range.
        above: the number of values above `high`.
    """

    low: int
    high: int
    counts: tuple[int, ...]
    above: int


@dataclass(frozen=True)
class VcpuCycles:
    """The cycles of the IPIs that one vCPU sent and handled.

    Attributes:
        send_cycles: S of the sends of this vCPU; None if it has none.
        deliver_cycles: D of the IPIs to this vCPU; None if there are none.
        round_trip_cycles: R of the sends of this vCPU; None if none was acknowledged.
    """

    vcpu: int
    send_cycles: Summary | None
    deliver_cycles: Summary | None
    round_trip_cycles: Summary | None


@dataclass(frozen=True)
class ExitsPerIpi:
    """VM exits per IPI by reason: the sender's per send, the targets' per delivery.

    Attributes:
        source: the source of the counts; None if nothing could count them.
        sender: reason to exits per send.
        target: reason to exits per delivery, over all targets except the sender; None if only
            senders are targets (`self`, `ring`).
    """

    source: str | None
    sender: Mapping[str, float] | None
    target: Mapping[str, float] | None


@dataclass(frozen=True)
class PerSide:
    """A count per IPI: the sender's per send, and the targets' per delivery."""

    sender: float
    target: float


@dataclass(frozen=True)
class StageStep:
    """One stage of the sequence that most IPIs of a scenario followed.

    Attributes:
        side: the side on whose vCPU it happens, `sender` or `target`.
        spans: the number of these IPIs that have it.
        since_send_cycles: median from the send.
        step_cycles: median from the previous stage on the way from the send to the handler;
            None for stages that are not on that way.
        share_of_deliver: the share of all D spent in this step; None for the same stages.
        resolved: False if one end of the step is a host event and the other a guest stamp, and
            the step is shorter than the clock's error bound or negative; its length is unknown.
        step_low: the least of the repetitions' medians of `step_cycles`; step_high: the largest.
            None for the same stages, and for a single repetition.
    """

    stage: str
    side: str
    spans: int
    since_send_cycles: int
    step_cycles: int | None
    share_of_deliver: float | None
    resolved: bool
    step_low: int | None = field(default=None, metadata=LATER)
    step_high: int | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class StageSequence:
    """Stages in the order in which some IPIs passed them, and the number of these IPIs."""

    stages: tuple[str, ...]
    spans: int


@dataclass(frozen=True)
class EventWeights:
    """What one host event adds to an IPI, in guest cycles; docs/observer.md.

    Attributes:
        twin_cycles: event to the distance of the stamps of two copies of its program.
        rest_cycles: what this lacks of the whole weight, which is their sum.
    """

    twin_cycles: Mapping[str, float]
    rest_cycles: float


@dataclass(frozen=True)
class CorrectedStages:
    """The stages of which the untraced D consists: without the weight of ipitrace's programs.

    Attributes:
        deliver_cycles: the median of D in the untraced repetitions.
        sum_cycles: the sum of the steps.
        unexplained: how far the sum is from this D, as a share of it.
        limit: of `unexplained`.
        holds: the sum is within the limit; otherwise the steps say little.
        sequences: as in StageBreakdown.
        steps: likewise. Their shares are of the untraced D.
        weights: what was taken out; None if there were no host events.
    """

    deliver_cycles: int
    sum_cycles: int
    unexplained: float
    limit: float
    holds: bool
    sequences: tuple[StageSequence, ...]
    steps: tuple[StageStep, ...]
    weights: EventWeights | None


@dataclass(frozen=True)
class StageBreakdown:
    """The stages of which D consists, as recorded.

    Attributes:
        spans: the number of deliveries broken down.
        bound_cycles: the error bound of a host event's place on the guest's clock.
        sequences: the most frequent ones, at most three, the dominant one first.
        steps: the steps of the dominant sequence, in the order of their medians.
        corrected: the same without the weight of ipitrace's programs; None if it is not known.
        evidence_steps: stages of which only mode EVIDENCE has the events, as recorded there: with
            the weight of all programs. None of them leads to the handler. None if there are none.
    """

    spans: int
    bound_cycles: int
    sequences: tuple[StageSequence, ...]
    steps: tuple[StageStep, ...]
    corrected: CorrectedStages | None = field(default=None, metadata=LATER)
    evidence_steps: tuple[StageStep, ...] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class ExitTime:
    """The duration of the exits of one reason on one side.

    Attributes:
        exits: their number.
        unpaired: the number of exits that no kvm_entry ended.
        p50_cycles: from kvm_exit to kvm_entry; None if all exits are unpaired.
        share_of_deliver: the share of all D that they cover.
        without_weight: the weight of ipitrace's programs was taken out of all figures; None if
            it was not.
    """

    side: str
    reason: str
    exits: int
    unpaired: int
    p50_cycles: int | None
    p99_cycles: int | None
    share_of_deliver: float
    without_weight: bool | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of one repetition in cycles: measured values, not interpolated.

    With fewer than 1000 values `p999` is the largest of them.
    """

    p50: int
    p90: int
    p99: int
    p999: int


@dataclass(frozen=True)
class RepetitionFigures:
    """The figures of one repetition; comparisons use these.

    Attributes:
        order: the number of the repetition in the run, as `repetition` in the tables.
        mode: off, stages or evidence; counting or full in recordings of version 1.
        sent: measured sends.
        send_cycles: S; None if no IPI has it.
        deliver_cycles: D; None if no IPI has it.
        round_trip_cycles: R; None if no IPI has it.
        exits: per IPI, by reason.
        paths: the share of IPIs that took each path; None unless all events were recorded.
        last_deliver_cycles: D of the last target of each send; None if sends have one target.
    """

    order: int
    mode: str
    sent: int
    send_cycles: Percentiles | None
    deliver_cycles: Percentiles | None
    round_trip_cycles: Percentiles | None
    exits: ExitsPerIpi | None
    paths: Mapping[str, float] | None
    last_deliver_cycles: Percentiles | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Occupant:
    """What ran on a vCPU's CPU while the vCPU waited for it.

    Attributes:
        kind: a words.threads.ThreadKind.
        name: as the process named itself, if it is one.
        share: of the side's waiting time.
    """

    kind: str
    name: str
    share: float


@dataclass(frozen=True)
class SideWaiting:
    """The waiting of one side inside IPIs.

    Attributes:
        side: `target`, from the send to the handler; `sender`, from the send to the
            acknowledgement.
        ipis: those for which it is known: sends of the sender, deliveries to the targets.
        off_at_send: the share of IPIs whose target had no CPU when the IPI was sent; None for the
            sender, which was running.
        waited: the share of IPIs in which the thread had no CPU for any time.
        waited_cycles: the time without a CPU of these IPIs; None if there are none.
        occupants: what ran instead, the largest share first; small ones are added up.
    """

    side: str
    ipis: int
    off_at_send: float | None
    waited: float
    waited_cycles: Summary | None
    occupants: tuple[Occupant, ...]


@dataclass(frozen=True)
class Overcommit:
    """What sharing CPUs did to the IPIs of a scenario.

    Attributes:
        cpus: the host CPU of each vCPU.
        vcpus_per_cpu: vCPUs on each of these CPUs.
        sides: the waiting of sender and targets, in the repetitions that recorded all events.
        deliver_running: D of the IPIs whose target had its CPU from the send to the handler;
            deliver_waiting: D of the others. Both are of the same repetitions as `sides`.
        switched_out_s: the time from each switch of a vCPU's thread out to its next switch in, of
            all vCPUs and these repetitions, warm-up included.
        run_delay_s: the time for which the same threads waited for a CPU, from the kernel's
            schedstat. It should be nearly the same.
        ple_exits: exits because of pause-loop exiting, per IPI.
        ple_window_updates: kvm_ple_window_update, per IPI.
        yields_attempted: directed yields that the guest requested, per IPI, from KVM's statistics.
        yields_successful: those that found the requested vCPU waiting.
    """

    cpus: tuple[int, ...]
    vcpus_per_cpu: int
    sides: tuple[SideWaiting, ...] | None
    deliver_running: Summary | None
    deliver_waiting: Summary | None
    switched_out_s: float | None
    run_delay_s: float | None
    ple_exits: PerSide | None
    ple_window_updates: PerSide | None
    yields_attempted: PerSide | None
    yields_successful: PerSide | None


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario's row.

    Attributes:
        status: `measured`, or `unsupported` for the reason in `reason`.
        sent: the number of sends (a broadcast is one), of all senders.
        delivered: handler entries, counted by the handlers themselves.
        coalesced: requested deliveries that no handler saw and that did not time out.
        incomplete: sends not acknowledged in time.
        send_cycles: S; deliver_cycles: D; round_trip_cycles: R.
        deliver_histogram: the distribution of D; None if no IPI has it.
        kvm_stats: KVM's other counters per IPI, by name.
        events_per_ipi: host tracepoints per IPI, by name.
        paths: the share of IPIs that took each path, by the path's name.
        stages: the stages of which D consists.
        exit_times: the duration of exits, by side and reason.
        late_posts: posted-interrupt notifications that reached a CPU outside guest mode,
            by their row in /proc/interrupts, over all CPUs and the recorded repetitions.
        host_interrupts: rows of /proc/interrupts (posted, reschedule and call-function
            interrupts) to CPU to increase over the recorded repetitions, warm-up included.
        unmatched_ipis: deliveries for which no host event was found.
        unmatched_events: events with the IPIs' vector that belong to no IPI, by tracepoint.
        suspect_spans: deliveries around which the guest's TSC offset changed.
        repetition_figures: the figures of each repetition in every mode, in the order run.
        absent: the reason for each field that is null.
        notes: notes that a reader needs before trusting the row.
        last_deliver_cycles: the D of the last target of each send that all targets handled;
            None if sends have one target.
        vcpus: the cycles of each vCPU; None if there are only one sender and one target.
        overcommit: what sharing CPUs did; None unless the scenario is for that.
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
    exits: ExitsPerIpi | None = None
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
    deliver_histogram: Histogram | None = field(default=None, metadata=LATER)
    last_deliver_cycles: Summary | None = field(default=None, metadata=LATER)
    vcpus: tuple[VcpuCycles, ...] | None = field(default=None, metadata=LATER)
    overcommit: Overcommit | None = field(default=None, metadata=LATER)
