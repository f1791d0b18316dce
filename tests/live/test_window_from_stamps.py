# SPDX-License-Identifier: Apache-2.0
"""A guest that tells nobody when its window begins, as Linux guests are: found by stamps.

The micro-guest does tell. Here what it told is taken away, and must come out again.
"""

import os
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ipitrace.clock import Clock
from ipitrace.measure.guests import micro_guest
from ipitrace.measure.repetition import Recorded, run_repetition
from ipitrace.measure.tracers import open_tracers
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Mode, Scenario, select_scenarios

pytestmark = pytest.mark.live

COUNT, WARMUP = 400, 100


@dataclass
class Silent:
    """A micro-guest whose marks are kept aside."""

    guest: MicroGuest
    real: Storm | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.guest, name)

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        return self.guest.targets(scenario)

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        self.real = self.guest.run(request, hooks)
        return replace(self.real, start=None, end=None, tsc_ratio=(1, 0))


@pytest.fixture(scope="module")
def watched() -> tuple[Recorded, Storm]:
    silent = Silent(micro_guest(2).driver)  # type: ignore[arg-type]
    (scenario,) = select_scenarios(["unicast-running"])
    with open_tracers(os.getpid(), 2) as tracers:
        tracers.set_mode(Mode.EVIDENCE)
        recorded = run_repetition(
            StormRequest(scenario, 2, COUNT, WARMUP, 60_000, timeout_s=20),
            silent,  # type: ignore[arg-type]
            tracers=tracers,
            mode=Mode.EVIDENCE,
            clock=Clock(),
            told=lambda _sent: None,
        )
        tracers.set_mode(Mode.OFF)
    assert silent.real is not None
    return recorded, silent.real


def test_the_same_events_are_inside(watched: tuple[Recorded, Storm]) -> None:
    recorded, real = watched
    assert recorded.no_trace_reason is None
    assert recorded.seen is not None
    assert real.counted is not None
    for kind in (Kind.KVM_APIC_IPI, Kind.KVM_APIC_ACCEPT_IRQ):
        assert recorded.seen[kind, 0] == COUNT
        assert recorded.seen[kind].tolist() == real.counted[kind].tolist()
    # What is counted without a stamp cannot be told.
    assert recorded.seen[Kind.KVM_EMULATE_INSN].sum() == 0


def test_every_ipi_has_its_span(watched: tuple[Recorded, Storm]) -> None:
    recorded, _real = watched
    assert recorded.watched is not None
    assert len(recorded.watched.spans.seq) == COUNT
    assert recorded.watched.spans.unmatched_ipis == 0
    assert recorded.watched.spans.unmatched_events == {}
    assert not recorded.watched.spans.suspect.any()


def test_no_event_of_the_warm_up_is_inside(watched: tuple[Recorded, Storm]) -> None:
    recorded, real = watched
    assert recorded.trace is not None
    low = int(real.sends["send_tsc"].astype(np.int64)[0]) - recorded.trace.bound_cycles
    assert recorded.trace.event_tsc.min() >= low - recorded.trace.bound_cycles


def test_without_the_guests_clock_its_own_numbers_stay(watched: tuple[Recorded, Storm]) -> None:
    """As on a kernel that is locked down, where debugfs cannot be read."""
    _recorded, real = watched

    class Locked(Silent):
        def run(self, request: StormRequest, hooks: Hooks) -> Storm:
            assert hooks is not None
            assert request is not None
            cycles = int(real.sends["ack_tsc"].max()) - int(real.sends["send_tsc"].min())
            time.sleep(2 * cycles / ((real.tsc_khz or 0) * 1000))  # no storm is over sooner
            why = "a locked-down kernel forbids it"
            return replace(real, start=None, end=None, tsc_offset=None, no_tsc=why)

    (scenario,) = select_scenarios(["unicast-running"])
    with open_tracers(os.getpid(), 2) as tracers:
        recorded = run_repetition(
            StormRequest(scenario, 2, COUNT, WARMUP, 60_000),
            Locked(micro_guest(2).driver),  # type: ignore[arg-type]
            tracers=tracers,
            mode=Mode.STAGES,
            clock=Clock(),
            told=lambda _sent: None,
        )
    assert recorded.watched is None
    assert recorded.seen is None
    assert recorded.no_trace_reason == (
        "The guest's TSC is not known: a locked-down kernel forbids it."
    )
    assert len(recorded.storm.sends) == COUNT
