# SPDX-License-Identifier: Apache-2.0
"""After each repetition, checks what changed on the host and which neighbours started or ended."""

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ipitrace.host.neighbours import Neighbours, changes, read_neighbours
from ipitrace.host.runs import MOST_RUNS, OtherRun, other_runs
from ipitrace.measure.guests import Guest
from ipitrace.measure.repetition import Recorded
from ipitrace.measure.steadiness import Setting, compare, cpus_of, placed
from ipitrace.recording.result import Disturbance
from ipitrace.storm.driver import StormRequest
from ipitrace.words.disturbances import DisturbanceKind

if TYPE_CHECKING:
    from ipitrace.host.conditions import Conditions

_MOST_NOTED: Final = (
    20_000  # limits run.json; disturbances that make numbers worthless are always recorded
)


class Lookout:
    """Collects what disturbed a run.

    Attributes:
        disturbances: in the order in which they were found.
    """

    def __init__(self, guest: Guest, neighbours: Neighbours, cpus: Collection[int]) -> None:
        """Start before the first repetition.

        Args:
            guest: the guest that is measured.
            neighbours: the neighbours before ipitrace loaded its BPF programs.
            cpus: the host CPUs that the vCPUs are pinned to; empty if they are not.
        """
        self._guest = guest
        self._cpus = frozenset(cpus)
        self._first: Conditions | None = None
        self._last: Conditions | None = None
        self._runs: set[OtherRun] = set()
        self.disturbances: list[Disturbance] = []
        around = read_neighbours(own_pids=guest.own_pids)
        self.disturbances += self._company(replace(neighbours, tracing_ids=None), around)
        self._around = around

    def after(
        self, request: StormRequest, recorded: Recorded, repetition: int, tsc_hz: float | None
    ) -> None:
        """Check the host, and compare the repetition's samples. This takes some ms."""
        found: list[Disturbance] = []
        start, end = recorded.looks.start, recorded.looks.end
        if start is not None and end is not None:
            self._first = self._first or start
            setting = Setting(
                scenario=request.scenario,
                targets=self._guest.driver.targets(request.scenario),
                pinned=self._guest.driver.cpus_in(request.scenario),
                ours=self._guest.ours,
                first=self._first,
                before=self._last or start,
                tsc_hz=tsc_hz,
                warmup=request.warmup,
            )
            found += compare(recorded.looks, recorded.storm, setting)
            self._last = end
        around = read_neighbours(own_pids=self._guest.own_pids)
        found += self._company(self._around, around)
        self._around = around
        self.disturbances += [
            one
            for one in placed(found, request.scenario.name, repetition, recorded.mode)
            if one.worthless or len(self.disturbances) < _MOST_NOTED
        ]

    def _company(self, before: Neighbours, after: Neighbours) -> list[Disturbance]:
        found = [
            Disturbance(DisturbanceKind.NEIGHBOUR, says, worthless=False)
            for says in changes(before, after)
        ]
        new = [run for run in other_runs() if run not in self._runs]
        new = new[: max(MOST_RUNS - len(self._runs), 0)]
        self._runs.update(new)
        return found + [
            Disturbance(DisturbanceKind.RUN, self._shares(run.pid, run.cpus), worthless=False)
            for run in new
        ]

    def _shares(self, pid: int, cpus: Collection[int]) -> str:
        who = f"another ipitrace run (pid {pid})"
        if not cpus or not self._cpus:
            return f"{who} was active, and may have used the same CPUs"
        same = self._cpus & set(cpus)
        return f"{who} also used {cpus_of(same)}" if same else f"{who} used {cpus_of(cpus)}"
