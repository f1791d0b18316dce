# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: scenarios, modes, paces and turns. It exists before the first storm."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.units import NS_PER_S
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.measure.clocks import tsc_hz_of_host
from ipitrace.measure.guests import Guest
from ipitrace.measure.limits import check_time, limited_pace
from ipitrace.measure.request import RunRequest, limits_of, sends_in, sends_of, warmup_of
from ipitrace.measure.turns import Turn, plan_turns
from ipitrace.recording.result import RunLimits
from ipitrace.storm.driver import Driver
from ipitrace.storm.limits import FASTEST_TSC_HZ
from ipitrace.words.scenarios import (
    MODES,
    OVERCOMMITTED,
    SCENARIOS,
    Mode,
    Pattern,
    Scenario,
    TargetState,
)

_PACE_CYCLES: Final = 60_000  # long enough for a target to be back in its waiting loop
_OVERCOMMITTED_S: Final = 0.002  # of the order of the scheduler's slices, see pace_of()
_BLOCKED_S: Final = 0.0005  # beyond twice the time for which the host polls, see pace_of()
# The edges, 25 MHz above multiples of 100 MHz, are apart from the rates that CPUs have: those are
# near multiples of 100, 50 and 33 MHz.
_STEP_HZ: Final = 100e6
_STEP_EDGE_HZ: Final = 25e6


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        scenarios: the requested ones that the guest can run, in the requested order.
        modes: the modes in which each of them runs.
        sends: measured sends of each repetition of a scenario and mode; overcommitted scenarios
            have fewer, see sends_in().
        paces: scenario name to cycles from an acknowledgement to the next send. The limit of
            the rate is already applied.
        limits: the limits of rate and time; None if there are none.
        tsc_hz: the guest TSC's rate that the paces are computed with.
        accounted: the modes of the repetitions in which the kernel accounts for the BPF programs;
            empty if it does not.
    """

    scenarios: tuple[Scenario, ...]
    modes: tuple[Mode, ...]
    sends: tuple[int, ...]
    paces: Mapping[str, int]
    limits: RunLimits | None
    tsc_hz: float
    accounted: tuple[Mode, ...] = ()

    def turns(self, seed: int) -> tuple[Turn[Scenario], ...]:
        """Every repetition, in the order in which to run them."""
        return self._turns(self.modes, seed)

    def accounted_turns(self, seed: int) -> tuple[Turn[Scenario], ...]:
        """The repetitions with accounting; they run after all others."""
        return self._turns(self.accounted, seed)

    def _turns(self, modes: tuple[Mode, ...], seed: int) -> tuple[Turn[Scenario], ...]:
        turns = plan_turns(self.scenarios, sends=self.sends, modes=modes, seed=seed)
        return tuple(replace(t, sends=sends_in(t.scenario, t.sends)) for t in turns)

    def cpus(self, driver: Driver) -> tuple[int, ...]:
        """The host CPUs that vCPUs are pinned to in any of the scenarios; () if they are not."""
        return tuple(sorted({cpu for s in self.scenarios for cpu in driver.cpus_in(s) or ()}))

    @property
    def n_modes(self) -> int:
        """Repetitions of each scenario in each block, those with accounting included."""
        return len(self.modes) + len(self.accounted)

    @property
    def n_sends(self) -> int:
        """Measured sends of all repetitions."""
        each = (sends_in(s, sends) for s in self.scenarios for sends in self.sends)
        return self.n_modes * sum(each)

    def storms(self) -> Iterator[tuple[int, int]]:
        """Yield sends (warm-up included) and pace of the storms of each scenario and block."""
        for scenario in self.scenarios:
            for sends in self.sends:
                each = sends_in(scenario, sends) + warmup_of(scenario)
                yield self.n_modes * each, self.paces[scenario.name]


def plan_for(request: RunRequest, guest: Guest) -> Plan:
    """The plan of a run in an open guest.

    Raises:
        HostError: the guest can run none of the scenarios.
        UsageError: the storms cannot end within the time limit.
    """
    driver = guest.driver
    able = [s for s in request.scenarios if driver.unsupported(s) is None]
    if not able:
        raise _nothing_can_run(request, driver)
    tsc_hz = known_tsc_hz(driver.tsc_khz)
    traced = request.trace and guest.pid is not None
    return make_plan(
        request, able, traced=traced, ours=guest.ours, tsc_hz=tsc_hz, n_vcpus=driver.n_vcpus
    )


def make_plan(
    request: RunRequest,
    able: Sequence[Scenario],
    *,
    traced: bool,
    ours: bool,
    tsc_hz: float,
    n_vcpus: int | None = None,
) -> Plan:
    """The plan for the scenarios that the guest can run.

    Args:
        request: the request of the run.
        able: the requested scenarios that the guest can run.
        traced: BPF programs will be attached.
        ours: the guest is the built-in one.
        tsc_hz: the guest TSC's rate.
        n_vcpus: of the guest; None if it is not known.

    Raises:
        UsageError: the storms cannot end within the time limit.
    """
    if request.probe_costs and not traced:
        raise UsageError(
            "--probe-costs accounts for BPF programs, and nothing of this guest is traced.",
            "Leave it out.",
        )
    limits = limits_of(request, ours=ours)
    modes = MODES if traced else (Mode.OFF,)
    plan = Plan(
        scenarios=tuple(able),
        modes=modes,
        sends=sends_of(request),
        paces={
            s.name: limited_pace(
                pace_of(request, s, tsc_hz),
                limits,
                tsc_hz,
                senders=n_vcpus or 1 if s.pattern == Pattern.RING else 1,
            )
            for s in able
        },
        limits=limits,
        tsc_hz=tsc_hz,
        accounted=tuple(m for m in modes if m != Mode.OFF) if request.probe_costs else (),
    )
    check_time(plan.storms(), limits, tsc_hz)
    return plan


def known_tsc_hz(guest_khz: int | None) -> float:
    """The guest TSC's rate: as stated, otherwise this host's rate, otherwise FASTEST_TSC_HZ."""
    return guest_khz * 1000.0 if guest_khz else tsc_hz_of_host() or FASTEST_TSC_HZ


def pace_of(request: RunRequest, scenario: Scenario, tsc_hz: float) -> int:
    """The requested pace, otherwise the pace that lets the target reach its state.

    A blocked target must stay in HLT for longer than the host polls for it
    (kvm.halt_poll_ns, 200 us by default). Sends to overcommitted targets are spread over the
    scheduler's slices: with a shorter pace, most would follow in the slice in which the target
    has just run. `tsc_hz` is the guest TSC's rate. It is rounded here:
    runs are comparable only with the same pace, and measured rates of one TSC differ by some ppm.
    """
    if request.pace_cycles is not None:
        return request.pace_cycles
    if scenario.target_state in OVERCOMMITTED:
        return int(_OVERCOMMITTED_S * _rounded(tsc_hz))
    if scenario.target_state != TargetState.BLOCKED:
        return _PACE_CYCLES
    parameters = read_fingerprint().kvm_parameters or {}
    polled_s = int(parameters.get("kvm.halt_poll_ns", "0") or 0) / NS_PER_S
    return int((2 * polled_s + _BLOCKED_S) * _rounded(tsc_hz))


def _rounded(tsc_hz: float) -> float:
    """The rate rounded to steps of 100 MHz; unchanged below the first step."""
    return math.ceil((tsc_hz - _STEP_EDGE_HZ) / _STEP_HZ) * _STEP_HZ or tsc_hz


def _nothing_can_run(request: RunRequest, driver: Driver) -> HostError:
    first = request.scenarios[0]
    able = [s.name for s in SCENARIOS if driver.unsupported(s) is None]
    can = f"These scenarios can run: {', '.join(able)}." if able else "No scenario can run."
    return HostError(
        f"The scenario '{first.name}' cannot run here: {driver.unsupported(first)}.",
        f"{can} 'ipitrace scenarios' with the same --vm and --via prints the reasons.",
    )
