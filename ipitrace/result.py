# SPDX-License-Identifier: Apache-2.0
"""What a run found, as plain data, and its form on disk: run.json.

The form is described by schemas/run.schema.json, which tests validate against.

History of SCHEMA_VERSION:
    1  first version.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipitrace.errors import HostError, UsageError
from ipitrace.model import Summary

SCHEMA_VERSION = 1
RUN_FILE = "run.json"


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
    absent: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObserverCost:
    """How far one median moved because we watched.

    Attributes:
        untraced_p50: the metric's median with all probes off, in cycles.
        traced_p50: with all probes on.
        difference_cycles: the median, over the pairs of neighbouring repetitions, of
            traced minus untraced.
        lowest_cycles: the smallest of those differences.
        highest_cycles: the largest of those differences.
    """

    untraced_p50: int
    traced_p50: int
    difference_cycles: int
    lowest_cycles: int
    highest_cycles: int


@dataclass(frozen=True)
class Observer:
    """What watching cost, per scenario and metric, and how that was found out.

    Attributes:
        method: how traced and untraced repetitions alternate.
        pairs: neighbouring traced and untraced repetitions of each scenario.
        costs: scenario name to metric (send, deliver, round_trip) to cost.
        setup_seconds: from nothing to programs loaded.
        attach_seconds: to attach them all once.
        hooks: tracepoint to how it is hooked (raw, classic).
        left_out: tracepoint to why it was not watched.
    """

    method: str
    pairs: int
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
        half_width_cycles: the worst sandwich's error bound, also in ns.
        causality_violations: by kind.
    """

    tsc_hz: float | None
    tsc_error_hz: float | None
    source: str | None
    kvm_tsc_khz: int | None
    guest_tsc_offset: int | None
    sandwiches: int
    half_width_cycles: float | None
    half_width_ns: float | None
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
class RunResult:
    """One run of `ipitrace run`.

    Attributes:
        complete: every scenario asked for was finished.
        failure: what ended the run early, when something did.
        untrustworthy: why the numbers should not be relied on; empty when they may be.
    """

    ipitrace_version: str
    started_at: str
    duration_seconds: float
    command: tuple[str, ...]
    complete: bool
    failure: str | None
    untrustworthy: tuple[str, ...]
    host: Mapping[str, Any]
    guest: Mapping[str, Any]
    clock: ClockResult
    losses: Losses
    observer: Observer | None
    observer_absent: str | None
    scenarios: tuple[ScenarioResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """The run as run.json holds it."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self) -> str:
        """run.json's text; the same run gives the same text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def prepare_directory(directory: Path, *, force: bool) -> None:
    """See that a recording can be written to `directory`, before anything is measured.

    Raises:
        UsageError: a recording is there already, or something else is.
        HostError: it cannot be written to.
    """
    if (directory / RUN_FILE).exists() and not force:
        raise UsageError(
            f"{directory} already holds a recording.",
            "Choose another directory with -o, or replace it with --force.",
        )
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is not a directory.", "Choose another with -o.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK)
    except OSError as error:
        raise HostError(
            f"{directory} cannot be made: {error.strerror}.", "Choose another directory with -o."
        ) from error
    if not writable:
        raise HostError(f"{directory} cannot be written to.", "Choose another directory with -o.")


def write_run(result: RunResult, directory: Path) -> Path:
    """Write run.json into `directory`, whole or not at all, and answer its path.

    Raises:
        HostError: the disk refuses.
    """
    path = directory / RUN_FILE
    unfinished = directory / f".{RUN_FILE}.{os.getpid()}"
    try:
        unfinished.write_text(result.to_json())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise HostError(
            f"{path} cannot be written: {error.strerror}.",
            "Free space, or choose another directory with -o.",
        ) from error
    return path
