# SPDX-License-Identifier: Apache-2.0
"""The effect on an untraced VM while ipitrace traces or watches another VM.

Raw tracepoints fire for every thread of the host; our programs ignore threads that are not
traced. This is one cost. The other is the CPU time that ipitrace and the other VM use. Each
condition is compared with the same condition without our programs, to separate the two costs.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.crowd import crowd
from bench.report import CYCLES, Report, Series, spread
from bench.storms import mirrored
from ipitrace.base.errors import HostError
from ipitrace.measure.tracers import ONLY_COUNTED
from ipitrace.summary.stats import interval_confidence
from ipitrace.tracer import Tracer
from ipitrace.tracer.events import EVENTS, STAGE_EVENTS, EventSpec
from ipitrace.vm import VirtualMachine, find_vms
from ipitrace.words.events import Kind
from ipitrace.words.metrics import TIMINGS

_MOST_S: Final = 130.0  # for all rounds: a round that would take longer is not started
_MOST_ROUNDS: Final = 30
_LEAST_CONFIDENCE: Final = 0.95
_COUNT: Final = 300
_METRICS: Final = tuple(timing.letter for timing in TIMINGS)
_RATE_HZ: Final = 1_000
_BUSY: Final = f"another VM, {_RATE_HZ:,} interrupts/s"
_SETTLE_S: Final = 0.2

# The neighbour: a separate process that runs a storm on request.
_NEIGHBOUR: Final = """
import json, sys
from bench.storms import Storms, medians, scenario
storms = Storms(scenario("unicast-running"), int(sys.argv[1]))
for _ in sys.stdin:
    print(json.dumps(list(medians(storms.run()).values())), flush=True)
"""


@dataclass(frozen=True)
class _Condition:
    """What runs beside the neighbour; `control` is the same without our programs."""

    name: str
    begin: Callable[[], AbstractContextManager[None]]
    control: str | None = None


def neighbour() -> Report:
    """Median S, D and R of an untraced micro-guest under each condition, in turn."""
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(_other(0))
        busy = stack.enter_context(_other(_RATE_HZ))
        stages, evidence, on_busy = (
            _tracer_of(vm, events, stack)
            for vm, events in ((idle, STAGE_EVENTS), (idle, EVENTS), (busy, STAGE_EVENTS))
        )
        conditions = (
            _Condition("nothing", nullcontext),
            _Condition("run's stages of an idle VM", lambda: _traced(stages)),
            _Condition("run's evidence of an idle VM", lambda: _traced(evidence, ONLY_COUNTED)),
            _Condition("its first repetition", lambda: _traced(evidence)),
            _Condition("watch of an idle VM", lambda: _watched(idle)),
            _Condition(_BUSY, lambda: _awake(busy)),
            _Condition("run's stages of that VM", lambda: _beside(busy, _traced(on_busy)), _BUSY),
            _Condition("watch of that VM", lambda: _beside(busy, _watched(busy)), _BUSY),
        )
        measure = stack.enter_context(_neighbour())
        found: dict[str, list[list[float]]] = {c.name: [] for c in conditions}
        measure()
        began_s = time.monotonic()
        for number, condition in enumerate(mirrored(conditions, _MOST_ROUNDS)):
            rounds, of_round = divmod(number, len(conditions))
            passed_s = time.monotonic() - began_s
            if not of_round and rounds and passed_s * (rounds + 1) / rounds > _MOST_S:
                break
            with condition.begin():
                found[condition.name].append(measure())
            print(condition.name, *found[condition.name][-1], file=sys.stderr, flush=True)
    return _report(conditions, {name: np.array(taken) for name, taken in found.items()})


def _tracer_of(
    vm: VirtualMachine, events: tuple[EventSpec, ...], stack: contextlib.ExitStack
) -> Tracer:
    tracer = stack.enter_context(Tracer.load(pid=vm.pid, n_vcpus=2, events=events))
    tracer.set_vcpu_threads(vm.tids)
    return tracer


def _report(conditions: tuple[_Condition, ...], found: dict[str, NDArray[np.float64]]) -> Report:
    rows = []
    rounds = len(found[conditions[0].name])
    for condition in conditions:
        taken = found[condition.name]
        control = found[condition.control or conditions[0].name]
        ratios = [_ratio(taken[:, i] / control[:, i]) for i in range(len(_METRICS))]
        rows.append(
            (
                condition.name,
                condition.control or "nothing",
                *(spread(taken[:, i], 0) for i in range(len(_METRICS))),
                *ratios,
            )
        )
    return Report(
        "Untraced VM beside a traced VM",
        ("beside it", "compared with", *_METRICS, *(f"{m}, ratio" for m in _METRICS)),
        rows,
        (
            f"{rounds} rounds in mirrored order: p50 of {_COUNT} IPIs (unicast-running) of an",
            "untraced micro-guest in a separate process. Cycles: median (middle half). Ratio:",
            f"median of the rounds' ratios [its interval: {_enclosing(rounds)[1]:.1%}].",
            "Probes: programs of `run`, attached and recording, for the other VM's threads; in the",
            "first repetition of each scenario also those that only count.",
            "Idle: its process is stopped. Interrupts: injected by a thread; the guest never runs.",
        ),
        [
            Series(f"{metric} beside {name}", CYCLES, [float(v) for v in taken[:, i]])
            for name, taken in found.items()
            for i, metric in enumerate(_METRICS)
        ],
    )


def _ratio(ratios: NDArray[np.float64]) -> str:
    ranked = np.sort(ratios)
    left_out, _ = _enclosing(len(ratios))
    low, high = ranked[left_out], ranked[len(ratios) - 1 - left_out]
    return f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]"


def _enclosing(n: int) -> tuple[int, float]:
    """The number of ranked values to omit at each end for an interval of the median.

    Also returns the interval's confidence: at least _LEAST_CONFIDENCE if `n` allows it. It follows
    from the binomial distribution only, for any distribution of the values.
    """
    best = 0, interval_confidence(n)
    for left_out in range(1, n // 2):
        outside = 2 * sum(math.comb(n, i) for i in range(left_out + 1)) / 2**n
        if 1 - outside < _LEAST_CONFIDENCE:
            break
        best = left_out, 1 - outside
    return best


@contextlib.contextmanager
def _other(rate_hz: int) -> Iterator[VirtualMachine]:
    """The other VM, with its process stopped."""
    with crowd(1, 1, 2, rate_hz) as (pid,):
        vm = next(vm for vm in find_vms() if vm.pid == pid)
        os.kill(pid, signal.SIGSTOP)
        yield vm


@contextlib.contextmanager
def _awake(vm: VirtualMachine) -> Iterator[None]:
    """Let the VM's process run while inside; otherwise it is stopped and uses no CPU."""
    os.kill(vm.pid, signal.SIGCONT)
    try:
        time.sleep(_SETTLE_S)
        yield
    finally:
        os.kill(vm.pid, signal.SIGSTOP)


@contextlib.contextmanager
def _neighbour() -> Iterator[Callable[[], list[float]]]:
    words = [sys.executable, "-c", _NEIGHBOUR, str(_COUNT)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        stdin, stdout = process.stdin, process.stdout

        def measure() -> list[float]:
            if stdin is None or stdout is None:
                raise HostError("The neighbour has no pipes.", "")
            stdin.write("\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise HostError("The neighbour ended early.", "See the output above.")
            return [float(value) for value in json.loads(line)]

        try:
            yield measure
        finally:
            process.kill()


@contextlib.contextmanager
def _beside(vm: VirtualMachine, other: AbstractContextManager[None]) -> Iterator[None]:
    with _awake(vm), other:
        yield


@contextlib.contextmanager
def _traced(tracer: Tracer, without: Collection[Kind] = ()) -> Iterator[None]:
    tracer.attach(without=without)
    try:
        yield
    finally:
        tracer.detach()
        tracer.drain()
        tracer.take()


@contextlib.contextmanager
def _watched(vm: VirtualMachine) -> Iterator[None]:
    words = ["watch", "--vm", f"pid:{vm.pid}", "--json", "-n", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "ipitrace", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            # Its first interval has ended, so its programs are attached.
            if process.stdout is None or not process.stdout.readline():
                raise HostError("ipitrace watch ended early.", "See the output above.")
            yield
        finally:
            process.terminate()
            process.communicate()
