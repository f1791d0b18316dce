# SPDX-License-Identifier: Apache-2.0
"""A made-up run, whole or with something wrong."""

from dataclasses import replace
from typing import Any

from strategies import left_alone, receipts, recorded, sends, storm

from ipitrace.base.loading import load
from ipitrace.recording.guest import micro_guest
from ipitrace.recording.host import HostFingerprint, HostResult, NeighboursResult, PinningResult
from ipitrace.recording.program_costs import ModeCosts, ProgramCost, ProgramCosts, Spread
from ipitrace.recording.result import (
    ClockResult,
    Losses,
    Observer,
    ObserverCost,
    PairedDifference,
    RunResult,
)
from ipitrace.recording.row import ScenarioResult
from ipitrace.storm.micro.driver import unsupported
from ipitrace.summary import Measured, summarise_scenario
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.scenarios import SCENARIOS

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def measured_row(name: str = "unicast-running", *, traced: bool = True) -> ScenarioResult:
    """Three sends to one target: S p50 20, D p50 50, R p50 200."""
    log = sends([(1000, 1010, 1100), (2000, 2020, 2200), (3000, 3030, 3300)])
    handled = receipts([1040, 2050, 3060])
    targets = (0,) if name.startswith("self") else (1,)
    logs = [handled, receipts([])] if targets == (0,) else [receipts([]), handled]
    one = storm(log, logs)
    vmx = int(Isa.VMX)
    exits = [(at, 0, vmx, 32) for at in (1005, 2005, 3005)]
    repetition = (
        recorded(one, targets, seen={(Kind.KVM_APIC_IPI, 0): 3}, exits=exits)
        if traced
        else left_alone(one, targets)
    )
    return summarise_scenario(Measured(BY_NAME[name], targets, 500, 100, 1, (repetition,)))


def unsupported_row(name: str = "ring") -> ScenarioResult:
    scenario = BY_NAME[name]
    return ScenarioResult(
        name=name,
        pattern=scenario.pattern,
        target_state=scenario.target_state,
        send_method=scenario.send_method,
        status="unsupported",
        reason=unsupported(scenario) or "the guest is too small",
    )


def made_host(**fingerprint: Any) -> HostResult:
    """A host of whose fingerprint only these keys are recorded."""
    return HostResult(
        one_line="a processor, 2 CPUs",
        fingerprint=load(HostFingerprint, fingerprint),
        neighbours=load(NeighboursResult, {"kvm_processes": []}),
        pinning=PinningResult(overcommitted=False, why="two cores"),
    )


def made_program_costs() -> ProgramCosts:
    """One program in two modes of one scenario."""
    cost = ProgramCost(2.25, Spread(90.4, 80.0, 120.0), Spread(203.4, 180.0, 270.0))
    mode = ModeCosts(Spread(203.4, 180.0, 270.0), {"kvm_apic_ipi": cost})
    costs = {"unicast-running": {"stages": mode, "evidence": mode}}
    return ProgramCosts("accounted", 6, 21.4, costs)


def made_run(**changes: Any) -> RunResult:
    """A traced run of one scenario, with these fields changed."""
    cost = ObserverCost(
        20,
        stages_p50=22,
        evidence_p50=25,
        stages=PairedDifference(2, 1, 4),
        evidence=PairedDifference(5, 3, 7),
    )
    costs = {"send": cost, "deliver": cost, "round_trip": cost}
    run = RunResult(
        ipitrace_version="0.0",
        started_at="2024-01-02T03:04:05+00:00",
        duration_seconds=1.5,
        command=("run",),
        complete=True,
        failure=None,
        untrustworthy=(),
        host=made_host(),
        guest=micro_guest(2, (0, 1), "0" * 64),
        clock=ClockResult(
            tsc_hz=2e9,
            tsc_error_hz=50.0,
            source="measured against CLOCK_MONOTONIC",
            kvm_tsc_khz=2_000_000,
            guest_tsc_offset=0,
            sandwiches=2,
            sandwiches_rejected=0,
            half_width_cycles=40.0,
            half_width_ns=20.0,
            bound_cycles=60,
            bound_ns=30.0,
            drift_ppm=0.25,
            drift_noise_ppm=0.1,
            causality_violations={"handler_before_send": 0, "tsc_backwards": 0},
        ),
        losses=Losses(100, {}, {}, 0, 0),
        observer=Observer(
            method="in turn",
            repetitions=6,
            confidence=0.96875,
            costs={"unicast-running": costs},
            setup_seconds=1.0,
            attach_seconds=0.1,
            hooks={"kvm_apic_ipi": "raw"},
            left_out={"kvm_exit": "tracefs is not mounted"},
        ),
        observer_absent=None,
        scenarios=(measured_row(),),
    )
    return replace(run, **changes)
