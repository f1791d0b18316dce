# SPDX-License-Identifier: Apache-2.0
"""The repetitions that a run has completed so far, by scenario."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ipitrace.correlate.switches import NO_SWITCHES, Switches
from ipitrace.measure.repetition import Recorded
from ipitrace.measure.request import WARMUP
from ipitrace.storm.driver import StormRequest
from ipitrace.summary import Measured, Repetition, reduce_storm
from ipitrace.words.scenarios import Scenario, routes_of


@dataclass
class _OfScenario:
    """The repetitions of one scenario so far, in the order run."""

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
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
        self, request: StormRequest, targets: tuple[int, ...], recorded: Recorded, order: int
    ) -> None:
        """Add a repetition; `order` is its number in the run."""
        scenario = request.scenario
        kept = self._by_name.setdefault(
            scenario.name, _OfScenario(scenario, targets, request.pace_cycles)
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

    def finished(self, n_modes: int, *, kvm_exit_fires: bool) -> list[Measured]:
        """The scenarios with at least one repetition in all modes.

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
                        WARMUP,
                        kept.bound_cycles,
                        tuple(kept.repetitions[:whole]),
                        tuple(kept.all_notes()),
                        kvm_exit_fires=kvm_exit_fires,
                    )
                )
        return found
