# SPDX-License-Identifier: Apache-2.0
"""Storms in the micro-guest, for all benchmarks that need a guest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ipitrace.host.cpus import allowed_cpus, choose_cpus, read_topology
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.tracer import Tracer
from ipitrace.words.metrics import DELIVER, ROUND_TRIP, SEND
from ipitrace.words.scenarios import SCENARIOS, Scenario

N_VCPUS = 2
WARMUP = 100
PACE_CYCLES = 60_000
NO_HOOKS = Hooks()
_TARGET = 1
T = TypeVar("T")


def scenario(name: str) -> Scenario:
    """A scenario by its name."""
    return next(s for s in SCENARIOS if s.name == name)


@dataclass(frozen=True)
class Storms:
    """Runs storms of one scenario, each in a new guest."""

    scenario: Scenario
    count: int

    def run(self, hooks: Hooks = NO_HOOKS) -> Storm:
        """One storm."""
        pinning = choose_cpus(N_VCPUS, allowed_cpus(), read_topology())
        guest = MicroGuest.prepare(N_VCPUS, pinning.cpus)
        request = StormRequest(self.scenario, N_VCPUS, self.count, WARMUP, PACE_CYCLES)
        return guest.run(request, hooks)


def watching(tracer: Tracer) -> Hooks:
    """The hooks of a storm that is traced by `tracer`, which is already attached."""
    return Hooks(
        threads_known=tracer.set_vcpu_threads,
        mark=tracer.seen,
        tick=lambda _sent: tracer.drain(),
    )


def send_cycles(storm: Storm) -> float:
    """Median S."""
    sends = storm.sends
    return float(np.median(sends["sent_tsc"].astype(np.int64) - sends["send_tsc"].astype(np.int64)))


def deliver_cycles(storm: Storm) -> float:
    """Median D; it is not defined for storms that lost an IPI."""
    handled = storm.receipts[_TARGET]["handler_tsc"].astype(np.int64)
    return float(np.median(handled - storm.sends["send_tsc"].astype(np.int64)))


def round_trip_cycles(storm: Storm) -> float:
    """Median R."""
    sends = storm.sends[storm.sends["ack_tsc"] > 0]
    return float(np.median(sends["ack_tsc"].astype(np.int64) - sends["send_tsc"].astype(np.int64)))


def medians(storm: Storm) -> dict[str, float]:
    """Median S, D and R, by letter; D is not defined for storms that lost an IPI."""
    return {
        SEND.letter: send_cycles(storm),
        DELIVER.letter: deliver_cycles(storm),
        ROUND_TRIP.letter: round_trip_cycles(storm),
    }


def tsc_hz(storm: Storm) -> float:
    """The guest TSC's rate; its nominal 1 GHz if KVM does not report it."""
    return (storm.tsc_khz or 1_000_000) * 1000.0


def mirrored(conditions: Sequence[T], rounds: int) -> Iterator[T]:
    """Every condition once per round, in alternating order, so that a trend cancels."""
    for i in range(rounds):
        yield from conditions if i % 2 == 0 else conditions[::-1]
