# SPDX-License-Identifier: Apache-2.0
"""Repetitions in which the kernel accounts for the BPF programs, after all others.

The accounting makes each run of a program more expensive, so these repetitions are in no other
figure and in no table of the recording.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.measure.online import OnlineCheck
from ipitrace.measure.performing import Context, Gathered, storm_request, storm_s
from ipitrace.measure.request import warmup_of
from ipitrace.measure.tracers import Tracers
from ipitrace.recording.program_costs import ModeCosts, ProgramCost, ProgramCosts, Spread
from ipitrace.storm.driver import Driver, Hooks, Storm, StormRequest
from ipitrace.storm.plausible import run_plausible
from ipitrace.tracer.run_time import accounting, own_cost_ns, read_run_time
from ipitrace.tracer.session import Tracer
from ipitrace.words.scenarios import Mode, Scenario

_METHOD: Final = (
    "the kernel's run_cnt and run_time_ns of each program, in repetitions after all others, "
    "which are in no other figure; they alternate as the others do; {window}"
)
_MEASURED: Final = "from the first measured send to the last acknowledgement"
_WHOLE: Final = "from before the storm to after it, warm-up included"


@dataclass(frozen=True)
class Account:
    """The account of one repetition.

    Attributes:
        ipis: sent while the kernel accounted; a send is one IPI for each of its targets.
        run_time: (programs, 2), runs and nanoseconds.
    """

    scenario: str
    mode: Mode
    ipis: int
    run_time: NDArray[np.int64]


class ProgramAccounts:
    """Collects the account of each program of both tracers, each of them attached alone.

    Attributes:
        accounts: of the completed repetitions, in the order run.
    """

    def __init__(self, tracers: Tracers, modes: Sequence[Mode]) -> None:
        """Measure the accounting's own cost; the programs need not be attached.

        `modes` are those of the repetitions.

        Raises:
            HostError: the kernel does not account, or this process may not request it.
        """
        self._own_ns = own_cost_ns()
        self._tracers = tracers
        self._events = {mode: tuple(tracers.recording_in(mode).program_fds) for mode in modes}
        self.accounts: list[Account] = []
        self._window = _MEASURED

    def perform(self, context: Context, gathered: Gathered) -> None:
        """Run all repetitions with accounting.

        Raises:
            HostError, MeasurementError: see run_plausible(); or the time is up, or a CPU went
                offline.
        """
        online = OnlineCheck(context.plan.cpus(context.guest.driver))
        turns = context.plan.accounted_turns(context.request.seed)
        total = context.plan.n_sends
        done = total - sum(turn.sends for turn in turns)

        def told(tracer: Tracer, scenario: Scenario, before: int, sent: int) -> None:
            tracer.drain()
            tracer.take()
            gathered.budget.check()
            online.check()
            measured = max(sent - warmup_of(scenario), 0)
            context.progress(scenario.name, (before + measured) / total)

        for turn in turns:
            request = storm_request(context, turn)
            tracer = self._tracers.attach_alone(turn.mode)
            gathered.budget.begin()
            tick = partial(told, tracer, turn.scenario, done)
            storm = self._account(context.guest.driver, request, turn.mode, tracer, tick)
            gathered.budget.end(storm_s(storm, request.warmup, context.plan.tsc_hz))
            done += turn.sends

    def _account(
        self,
        driver: Driver,
        request: StormRequest,
        mode: Mode,
        tracer: Tracer,
        tick: Callable[[int], None],
    ) -> Storm:
        read = partial(read_run_time, tuple(tracer.program_fds.values()))
        hooks = Hooks(threads_known=tracer.set_vcpu_threads, mark=read, tick=tick)
        with accounting():
            before = read()
            storm = run_plausible(driver, request, hooks)
            run_time, sends = storm.counted, request.count
            if run_time is None:
                run_time, sends = (
                    (read() - before).astype(np.int64),
                    request.warmup + request.count,
                )
                self._window = _WHOLE
        tracer.take()
        ipis = sends * len(driver.targets(request.scenario))
        self.accounts.append(Account(request.scenario.name, mode, ipis, run_time))
        return storm

    def result(self) -> ProgramCosts | None:
        """The costs of the scenarios with at least one repetition in each mode; None if none has.

        Of a block that was not completed, no repetition is included.
        """
        by_scenario: dict[str, dict[Mode, list[Account]]] = {}
        for one in self.accounts:
            by_scenario.setdefault(one.scenario, {}).setdefault(one.mode, []).append(one)
        costs, repetitions = {}, []
        for name, by_mode in by_scenario.items():
            if by_mode.keys() == self._events.keys():
                whole = min(map(len, by_mode.values()))
                repetitions.append(whole)
                costs[name] = {
                    mode.value: _costs(by_mode[mode][:whole], self._events[mode])
                    for mode in self._events
                }
        if not costs:
            return None
        method = _METHOD.format(window=self._window)
        return ProgramCosts(method, min(repetitions), self._own_ns, costs)


def _costs(repetitions: Sequence[Account], events: Sequence[str]) -> ModeCosts:
    """The costs of one scenario and mode."""
    ipis = np.array([one.ipis for one in repetitions])
    runs, ns = np.stack([one.run_time for one in repetitions], axis=-1).swapaxes(0, 1)
    programs = {}
    for row, event in enumerate(events):
        ran = runs[row] > 0
        if ran.any():
            programs[event] = ProgramCost(
                runs_per_ipi=float(np.median(runs[row] / ipis)),
                ns_per_run=_spread(ns[row][ran] / runs[row][ran]),
                ns_per_ipi=_spread(ns[row] / ipis),
            )
    return ModeCosts(_spread(ns.sum(axis=0) / ipis), programs)


def _spread(values: NDArray[np.float64]) -> Spread:
    return Spread(float(np.median(values)), float(values.min()), float(values.max()))
