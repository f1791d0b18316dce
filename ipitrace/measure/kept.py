# SPDX-License-Identifier: Apache-2.0
"""The repetitions that a run has completed so far, by scenario."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ipitrace.correlate.switches import NO_SWITCHES, Switches
from ipitrace.measure.repetition import Recorded
from ipitrace.storm.driver import StormRequest
from ipitrace.summary import Measured, Repetition, reduce_storm
from ipitrace.words.scenarios import Scenario, routes_of


@dataclass
class _OfScenario:
    """The repetitions of one scenario so far, in the order run."""

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
    warmup: int
    cpus: tuple[int, ...] | None
    repetitions: list[Repetition] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    switches: Switches = NO_SWITCHES
    bound_cycles: int = 0

    def all_notes(self) -> Iterator[str]:
        """Notes that a reader needs before trusting the scenario's row."""
        yield from sorted(self.notes)
        if unseen := self.switches.unseen:
            happened = self.switches.seen + unseen
            yield (
                f"{unseen} of {happened} context switches of the vCPUs' threads were not recorded; "
                "some IPIs may lack the stage sched_in"
            )


class KeptRepetitions:
    """Collects the completed repetitions of a run.

    Attributes:
        incomplete: IPIs not acknowledged in time, of all repetitions, warm-up included.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, _OfScenario] = {}
        self.incomplete = 0

    def add(
        self,
        request: StormRequest,
        targets: tuple[int, ...],
        recorded: Recorded,
        order: int,
        cpus: tuple[int, ...] | None = None,
    ) -> None:
        """Add a repetition.

        Args:
            request: its storm.
            targets: the vCPUs that handled its IPIs.
            recorded: what was recorded.
            order: its number in the run.
            cpus: the host CPU of each vCPU; None if they are not pinned.
        """
        scenario = request.scenario
        kept = self._by_name.setdefault(
            scenario.name, _OfScenario(scenario, targets, request.pace_cycles, request.warmup, cpus)
        )
        kept.repetitions.append(
            reduce_storm(
                recorded.storm,
                routes_of(scenario.pattern, targets),
                recorded.mode,
                recorded.watched,
                seen=recorded.seen,
                uncounted=recorded.uncounted,
                twins=recorded.twins,
                order=order,
            )
        )
        kept.switches += recorded.switches
        if recorded.trace is not None:
            kept.bound_cycles = max(kept.bound_cycles, recorded.trace.bound_cycles)
        elif recorded.no_trace_reason:
            kept.notes.add(f"no stages: {recorded.no_trace_reason}")
        self.incomplete += recorded.storm.incomplete

    def finished(
        self, n_modes: int, *, kvm_exit_fires: bool, left_out: Mapping[str, str]
    ) -> list[Measured]:
        """The scenarios with at least one repetition in all modes.

        `left_out` are the events that were not traced, and why.

        Repetitions of a block in which not all modes ran are not included.
        """
        found = []
        for kept in self._by_name.values():
            whole = len(kept.repetitions) // n_modes * n_modes
            if whole:
                found.append(
                    Measured(
                        kept.scenario,
                        kept.targets,
                        kept.pace_cycles,
                        kept.warmup,
                        kept.bound_cycles,
                        tuple(kept.repetitions[:whole]),
                        tuple(kept.all_notes()),
                        kvm_exit_fires=kvm_exit_fires,
                        cpus=kept.cpus,
                        left_out=left_out,
                    )
                )
        return found
