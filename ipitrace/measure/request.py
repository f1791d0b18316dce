# SPDX-License-Identifier: Apache-2.0
"""The request of `ipitrace run`, and the checks of its numbers."""

import math
from dataclasses import dataclass
from typing import Final

from ipitrace.base.errors import UsageError
from ipitrace.base.units import NS_PER_S
from ipitrace.measure.limits import chosen_limits
from ipitrace.measure.turns import split
from ipitrace.recording.result import RunLimits
from ipitrace.storm.driver import Driver
from ipitrace.words.scenarios import OVERCOMMITTED, Scenario

WARMUP: Final = 100
_SLOW_WARMUP: Final = 10
_MOST_SLOW_SENDS: Final = 50
REPETITIONS: Final = 6  # the fewest whose extremes enclose the median with 95 % confidence
MAX_REPETITIONS: Final = 1000
MAX_OF_ALL_SCENARIOS: Final = 4000  # limited by recording.writer.MOST_RUN_BYTES
MOST_SEED: Final = (1 << 64) - 1  # the largest integer that readers of run.json accept
_LEAST_RATE_HZ: Final = 0.001  # the pace must fit into the 64 bits that the guest has for it
_MOST_SENDS: Final = 250_000  # of one repetition: limits the memory for its events


@dataclass(frozen=True)
class RunRequest:
    """The request of `ipitrace run`.

    Attributes:
        scenarios: in the order to run.
        count: measured sends of each scenario; at most 50 in a repetition of an overcommitted
            one, in which a send takes milliseconds.
        pace_cycles: cycles from one acknowledgement to the next send; None means that the
            scenario decides.
        trace: attach BPF programs and measure their cost; False attaches none.
        command: the command line, for the recording.
        inject: a deliberate fault. Tests use it to prove that ipitrace reports the fault.
        repeat: repetitions of each scenario and mode; `count` is divided among them.
        seed: of the order in which scenarios take turns.
        handler_burn_cycles: cycles that each handler wastes. Tests use it to prove that
            ipitrace measures them.
        probe_costs: also run repetitions in which the kernel accounts for the BPF programs.
        max_rate_hz: the limit of sends per second; 0 is no limit, None is the default of the
            guest's kind.
        max_time_s: the limit of the storms' seconds, with the same meaning of 0 and None.
    """

    scenarios: tuple[Scenario, ...]
    count: int
    pace_cycles: int | None
    trace: bool
    command: tuple[str, ...] = ()
    inject: str | None = None
    repeat: int = REPETITIONS
    seed: int = 0
    handler_burn_cycles: int = 0
    probe_costs: bool = False
    max_rate_hz: float | None = None
    max_time_s: float | None = None


def check_request(request: RunRequest) -> None:
    """Check the request's numbers, except those that depend on the guest.

    Raises:
        UsageError: a number is out of its range, or there is no scenario.
    """
    if not request.scenarios:
        raise UsageError("No scenario was requested.", "Name at least one scenario.")
    if not 0 <= request.seed <= MOST_SEED:
        raise UsageError(f"--seed {request.seed} is out of range.", f"Use 0 to {MOST_SEED}.")
    if not 1 <= request.repeat <= MAX_REPETITIONS:
        raise UsageError(
            f"--repeat {request.repeat} is out of range.",
            f"Use 1 to {MAX_REPETITIONS} repetitions.",
        )
    in_all = len(request.scenarios) * request.repeat
    if in_all > MAX_OF_ALL_SCENARIOS:
        raise UsageError(
            f"--repeat {request.repeat} of {len(request.scenarios)} scenarios is {in_all} "
            f"repetitions, and a recording holds at most {MAX_OF_ALL_SCENARIOS}.",
            "Reduce --repeat, or run fewer scenarios at a time.",
        )
    if request.pace_cycles is not None and not 0 <= request.pace_cycles <= NS_PER_S:
        raise UsageError(
            f"--pace {request.pace_cycles} is out of range.",
            f"Use 0 to {NS_PER_S:,} cycles.",
        )
    if request.probe_costs and not request.trace:
        raise UsageError(
            "--probe-costs accounts for BPF programs, and --no-trace attaches none.",
            "Leave one of the two out.",
        )
    for option, limit in (("--max-rate", request.max_rate_hz), ("--max-time", request.max_time_s)):
        if limit is not None and not 0 <= limit < math.inf:
            raise UsageError(
                f"{option} {limit:g} is out of range.", "Use a number above 0, or 'unlimited'."
            )
    if request.max_rate_hz and request.max_rate_hz < _LEAST_RATE_HZ:
        raise UsageError(
            f"--max-rate {request.max_rate_hz:g} is out of range.",
            f"Use {_LEAST_RATE_HZ:g} sends per second or more, or 'unlimited'.",
        )


def check_count(request: RunRequest, guest: Driver) -> None:
    """Check that the guest can log the requested number of IPIs.

    Raises:
        UsageError: it cannot.
    """
    most = guest.max_count - WARMUP
    if not 1 <= request.count <= most:
        raise UsageError(
            f"--count {request.count} is out of range.",
            f"Use 1 to {most:,} IPIs; the logs of {guest.n_vcpus} vCPUs hold no more.",
        )


def warmup_of(scenario: Scenario) -> int:
    """Sends of a storm that are not measured; few where a send takes milliseconds."""
    return _SLOW_WARMUP if _is_slow(scenario) else WARMUP


def sends_in(scenario: Scenario, sends: int) -> int:
    """Measured sends of a repetition for which `sends` were requested."""
    return min(sends, _MOST_SLOW_SENDS) if _is_slow(scenario) else sends


def _is_slow(scenario: Scenario) -> bool:
    return scenario.target_state in OVERCOMMITTED


def limits_of(request: RunRequest, *, ours: bool) -> RunLimits | None:
    """The limits that apply to the run; see limits.chosen_limits()."""
    return chosen_limits(request.max_rate_hz, request.max_time_s, ours=ours)


def sends_of(request: RunRequest) -> tuple[int, ...]:
    """Measured sends of each repetition, before sends_in()."""
    return split(request.count, max(request.repeat, -(-request.count // _MOST_SENDS)))
