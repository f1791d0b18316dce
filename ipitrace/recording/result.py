# SPDX-License-Identifier: Apache-2.0
"""A run's result, as plain data and as the text of run.json.

schemas/run.schema.json describes that text, and tests validate against it.

History of SCHEMA_VERSION:
    1  first version; `seed`, `disturbances`, `limits` and `program_costs` were added later
       and may be absent.
    2  the modes are off, stages and evidence instead of off, counting and full: the rows' timings
       are of mode off, their stages of mode stages, and all else of mode evidence.
       `last_deliver_cycles` and `vcpus` of a row were added later and may be absent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ipitrace.base.loading import LATER, load, unload
from ipitrace.recording.guest import GuestResult
from ipitrace.recording.host import HostResult
from ipitrace.recording.program_costs import ProgramCosts
from ipitrace.recording.row import ScenarioResult

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class PairedDifference:
    """A median of paired differences, and its confidence interval, in cycles."""

    median: int
    low: int
    high: int


@dataclass(frozen=True)
class ObserverCost:
    """The change of one metric's median that tracing caused.

    Attributes:
        off_p50: the median of the repetitions' medians with all probes detached, in cycles.
        stages_p50: with the probes of the stages.
        evidence_p50: with all probes.
        stages: this mode minus off, repetition by repetition.
        evidence: likewise.
        counting_p50, full_p50, counting, full: in recordings of version 1, which had other modes:
            all probes attached, and only counting, or also recording.
    """

    off_p50: int
    counting_p50: int | None = field(default=None, metadata=LATER)
    full_p50: int | None = field(default=None, metadata=LATER)
    counting: PairedDifference | None = field(default=None, metadata=LATER)
    full: PairedDifference | None = field(default=None, metadata=LATER)
    stages_p50: int | None = field(default=None, metadata=LATER)
    evidence_p50: int | None = field(default=None, metadata=LATER)
    stages: PairedDifference | None = field(default=None, metadata=LATER)
    evidence: PairedDifference | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Observer:
    """The observer cost per scenario and metric, and how it was measured.

    Attributes:
        method: how the repetitions alternate.
        repetitions: of each scenario in each mode.
        confidence: of the intervals; exact, because they come from order statistics.
        costs: scenario name to metric (send, deliver, round_trip) to cost.
        setup_seconds: the time to load all programs.
        attach_seconds: the time to attach them all once.
        hooks: tracepoint to how it is hooked.
        left_out: tracepoint to the reason why it was not traced.
        stage_hooks: as `hooks`, in the repetitions that record only the stages' events.
    """

    method: str
    repetitions: int
    confidence: float
    costs: Mapping[str, Mapping[str, ObserverCost]]
    setup_seconds: float
    attach_seconds: float
    hooks: Mapping[str, str]
    left_out: Mapping[str, str]
    stage_hooks: Mapping[str, str] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class ClockResult:
    """The run's clocks.

    Attributes:
        tsc_hz: the TSC's measured rate, or KVM's figure if it could not be measured.
        tsc_error_hz: the measurement's error bound; None if the rate was not measured.
        source: the source of tsc_hz.
        kvm_tsc_khz: the guest TSC's rate as KVM states it.
        guest_tsc_offset: guest minus host TSC as KVM states it.
        sandwiches: the number of readings of both clocks.
        sandwiches_rejected: readings that were not used because they were interrupted.
        half_width_cycles: the largest error bound of a used reading, also in ns.
        bound_cycles: the largest error bound of a host event's place on the guest's clock,
            also in ns; None if no event was put on it.
        drift_ppm: the largest change of one clock's rate against the other's.
        drift_noise_ppm: the part of drift_ppm that the readings' errors can explain.
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
    """The events and IPIs that were not recorded.

    Attributes:
        events_seen: host events that passed the filter, over the whole run.
        ring_overruns: tracepoint to events lost because user space did not read them in time.
        recursion_misses: tracepoint to how often the kernel skipped the program because
            it was already running on that CPU; None if the kernel does not count that.
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
    """A condition that differed from the intended one while repetitions ran.

    Attributes:
        kind: `moved`, `stopped`, `suspended`, `waited`, `late`, `stolen`, `frequency`,
            `throttled`, `hotplug`, `neighbour` or `run`.
        says: a description in one sentence.
        worthless: it makes the numbers worthless; otherwise it only makes them doubtful.
        share: its share of the storm's time; None if it took no time.
        scenario: of the repetition after which it was found; None before the first one.
        repetition: that repetition, as `order` in the figures and `repetition` in the tables.
        mode: of that repetition.
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
    """The limits of the storms; None is no limit.

    Attributes:
        max_rate_hz: sends per second, in any storm.
        max_time_s: seconds of all storms together.
        by_default: the user set neither; these are the defaults for a guest that ipitrace did
            not start.
    """

    max_rate_hz: float | None
    max_time_s: float | None
    by_default: bool


@dataclass(frozen=True)
class TableInfo:
    """One Parquet table of a recording.

    Attributes:
        columns: each column and its meaning.
    """

    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class RunResult:
    """One run of `ipitrace run`.

    Attributes:
        complete: every requested scenario was completed.
        failure: the error that ended the run early, or None.
        untrustworthy: the reasons not to rely on the numbers; empty if there are none.
        tables: the Parquet tables beside run.json, by name.
        seed: of the shuffled order of the scenarios.
        disturbances: what was found by the checks after each repetition; None in recordings
            of versions without such checks.
        limits: of rate and time; None if there were none.
        program_costs: the kernel's account of the BPF programs; None if it was not requested, or
            if no scenario was completed with it.
        schema_version: of the format in which it was recorded.
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
    disturbances: tuple[Disturbance, ...] | None = field(default=None, metadata=LATER)
    limits: RunLimits | None = field(default=None, metadata=LATER)
    program_costs: ProgramCosts | None = field(default=None, metadata=LATER)
    schema_version: int = SCHEMA_VERSION

    @property
    def emulator(self) -> str | None:
        """The program that emulates the run's host or guest; None if neither is emulated."""
        fingerprint = self.host.fingerprint
        return (None if fingerprint is None else fingerprint.emulated) or self.guest.emulated

    @property
    def kernel_release(self) -> str | None:
        """The kernel release of the host."""
        return None if self.host.fingerprint is None else self.host.fingerprint.kernel_release

    def to_dict(self) -> dict[str, Any]:
        """The run as run.json has it; an older recording does not get newer keys."""
        return {"schema_version": self.schema_version, **unload(self)}

    def to_json(self) -> str:
        """The text of run.json; the same run gives the same text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The run from its to_dict() or its parsed run.json.

        Raises:
            ValueError: a key is unknown or missing, or a value has the wrong type.
        """
        return load(cls, data)
