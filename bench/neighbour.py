# SPDX-License-Identifier: Apache-2.0
"""What a VM that nobody traces feels while ipitrace traces or watches another one.

Raw tracepoints fire for every thread of the host; our programs pass over those that are not
theirs. That is one cost. The other is the CPU that ipitrace, and a storm in the other VM, take.
Each condition is compared with the same one without our programs, so that the two do not mix.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.report import CYCLES, Report, Series, spread
from bench.storms import PACE_CYCLES, mirrored
from ipitrace.errors import HostError
from ipitrace.stats import interval_confidence
from ipitrace.tracer import Tracer
from ipitrace.vm import find_vms

_ROUNDS: Final = 6  # their extremes enclose the median with 96.9 % confidence
_COUNT: Final = 300
_METRICS: Final = ("S", "D", "R")
_STORM: Final = "a storm in another VM, same CPUs"
_SETTLE_S: Final = 0.2
_READY_S: Final = 30.0

# The neighbour: a process of its own that runs a storm whenever it is asked to.
_NEIGHBOUR: Final = """
import json, sys
import numpy as np
from bench.storms import Storms, deliver_cycles, round_trip_cycles, scenario
storms = Storms(scenario("unicast-running"), int(sys.argv[1]))
for _ in sys.stdin:
    storm = storms.run()
    sends = storm.sends["sent_tsc"].astype(np.int64) - storm.sends["send_tsc"].astype(np.int64)
    found = [float(np.median(sends)), deliver_cycles(storm), round_trip_cycles(storm)]
    print(json.dumps(found), flush=True)
"""
# The other VM: one storm that never ends, at a pace. A stop of the process is no lost IPI.
_OTHER: Final = """
import sys
from ipitrace.model import StormRequest
from ipitrace.storm.driver import Hooks
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.storm.scenarios import select_scenarios
(scenario,) = select_scenarios(["unicast-running"])
request = StormRequest(scenario, 2, 8_000_000, 1, int(sys.argv[1]), 3600.0)
guest = MicroGuest.prepare(2, None)
guest.run(request, Hooks(lambda tids: print(*tids, flush=True)))
"""


@dataclass(frozen=True)
class _Vm:
    """The other VM's process."""

    process: "subprocess.Popen[str]"
    tids: tuple[int, ...]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """While inside it runs; otherwise it is stopped, and takes no CPU."""
        self.process.send_signal(signal.SIGCONT)
        try:
            time.sleep(_SETTLE_S)
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)


@dataclass(frozen=True)
class _Condition:
    """What goes on beside the neighbour; `control` is the same without our programs."""

    name: str
    begin: Callable[[], AbstractContextManager[None]]
    control: str | None = None


def neighbour() -> Report:
    """Median S, D and R of an untraced micro-guest under each condition, in turn."""
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(_other())
        busy = stack.enter_context(_other())
        on_idle, on_busy = (
            stack.enter_context(Tracer.load(pid=vm.process.pid, n_vcpus=2)) for vm in (idle, busy)
        )
        on_idle.set_vcpu_threads(idle.tids)
        on_busy.set_vcpu_threads(busy.tids)
        conditions = (
            _Condition("nothing", nullcontext),
            _Condition("run's probes for an idle VM", lambda: _traced(on_idle)),
            _Condition("watch of an idle VM", lambda: _watched(idle)),
            _Condition(_STORM, busy.awake),
            _Condition("run's probes for that VM", lambda: _beside(busy, _traced(on_busy)), _STORM),
            _Condition("watch of that VM", lambda: _beside(busy, _watched(busy)), _STORM),
        )
        measure = stack.enter_context(_neighbour())
        found: dict[str, list[list[float]]] = {c.name: [] for c in conditions}
        measure()
        for condition in mirrored(conditions, _ROUNDS):
            with condition.begin():
                found[condition.name].append(measure())
            print(condition.name, *found[condition.name][-1], file=sys.stderr, flush=True)
    return _report(conditions, {name: np.array(taken) for name, taken in found.items()})


def _report(conditions: tuple[_Condition, ...], found: dict[str, NDArray[np.float64]]) -> Report:
    rows = []
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
        "A VM beside the one that is traced",
        ("beside it", "compared with", *_METRICS, *(f"{m}, ratio" for m in _METRICS)),
        rows,
        (
            f"{_ROUNDS} rounds in mirrored order: p50 of {_COUNT} IPIs (unicast-running) of an",
            "untraced micro-guest in a process of its own. Cycles: median (middle half). Ratio:",
            f"median of the rounds' ratios [least, greatest: {interval_confidence(_ROUNDS):.1%}].",
            "Probes: all programs of `run`, attached and recording, for the other VM's threads.",
            "Idle: its process is stopped, so that it takes no CPU.",
        ),
        [
            Series(f"{metric} beside {name}", CYCLES, [float(v) for v in taken[:, i]])
            for name, taken in found.items()
            for i, metric in enumerate(_METRICS)
        ],
    )


def _ratio(ratios: NDArray[np.float64]) -> str:
    return f"{np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}]"


@contextlib.contextmanager
def _other() -> Iterator[_Vm]:
    words = [sys.executable, "-c", _OTHER, str(PACE_CYCLES)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise HostError("the other VM ended early", "see what it says above")
            # Its threads are known to others once they have run.
            deadline_s = time.monotonic() + _READY_S
            while not any(vm.pid == process.pid and vm.tids for vm in find_vms()):
                if time.monotonic() > deadline_s:
                    raise HostError("the other VM's threads do not show", "look at ipitrace list")
            process.send_signal(signal.SIGSTOP)
            yield _Vm(process, tuple(map(int, line.split())))
        finally:
            process.kill()


@contextlib.contextmanager
def _neighbour() -> Iterator[Callable[[], list[float]]]:
    words = [sys.executable, "-c", _NEIGHBOUR, str(_COUNT)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        stdin, stdout = process.stdin, process.stdout

        def measure() -> list[float]:
            if stdin is None or stdout is None:
                raise HostError("the neighbour has no pipes", "")
            stdin.write("\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise HostError("the neighbour ended early", "see what it says above")
            return [float(value) for value in json.loads(line)]

        try:
            yield measure
        finally:
            process.kill()


@contextlib.contextmanager
def _beside(vm: _Vm, other: AbstractContextManager[None]) -> Iterator[None]:
    with vm.awake(), other:
        yield


@contextlib.contextmanager
def _traced(tracer: Tracer) -> Iterator[None]:
    tracer.attach()
    try:
        yield
    finally:
        tracer.detach()
        tracer.drain()
        tracer.take()


@contextlib.contextmanager
def _watched(vm: _Vm) -> Iterator[None]:
    words = ["watch", "--vm", f"pid:{vm.process.pid}", "--json", "-n", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "ipitrace", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            # Its first interval is over: its programs are attached.
            if process.stdout is None or not process.stdout.readline():
                raise HostError("ipitrace watch ended early", "see what it says above")
            yield
        finally:
            process.terminate()
            process.communicate()
