# SPDX-License-Identifier: Apache-2.0
"""The time that each BPF program adds to its event."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bench.report import CYCLES, SECONDS, Report, Series, spread
from bench.storms import Storms, mirrored, round_trip_cycles, scenario, tsc_hz, watching
from ipitrace.tracer import Tracer
from ipitrace.words.events import Kind

_PAIRS = 5
_COUNT = 400
_FIRES = 0.5  # with fewer events per IPI, a program's cost is not visible in one IPI
_SCENARIOS = ("unicast-running", "unicast-halted")
_SENDER, _TARGET = 0, 1

_ROUNDS = 1000
_TRIPS = 60
_MODES = ("off", "other threads", "counting", "full")


def in_guest() -> Report:
    """Round trips of the micro-guest with one program attached, and with none."""
    rows: list[Sequence[object]] = []
    series: list[Series] = []
    done: set[str] = set()
    for name in _SCENARIOS:
        storms = Storms(scenario(name), _COUNT)
        for event, per_ipi in _events_per_ipi(storms).items():
            if event in done or sum(per_ipi) < _FIRES:
                continue
            done.add(event)
            off, on, hz = _pairs(storms, event)
            added = [(b - a) * 1e9 / hz for a, b in zip(off, on, strict=True)]
            rows.append(
                (
                    event,
                    name,
                    f"{per_ipi[_SENDER]:.2f} / {per_ipi[_TARGET]:.2f}",
                    f"{float(np.median(off)):,.0f}",
                    spread((b / a for a, b in zip(off, on, strict=True)), 3),
                    spread(added, 0),
                    f"{float(np.median(added)) / sum(per_ipi):,.0f}",
                )
            )
            series += [
                Series(f"program {event} off", CYCLES, off),
                Series(f"program {event} on", CYCLES, on),
            ]
    return Report(
        "Added time of each program, in the micro-guest",
        (
            "event",
            "scenario",
            "events per IPI, sender / target",
            "R, cycles, none attached",
            "ratio, this one attached",
            "added ns per IPI",
            "per event",
        ),
        rows,
        (
            f"{_PAIRS} adjacent pairs of storms of {_COUNT} IPIs, each in a new guest.",
            "Medians of R, then median (minimum to maximum) over the pairs.",
            "Per event: divided by all events of an IPI, also those outside the round trip's path.",
            "Events that fired less than once in two IPIs are left out.",
        ),
        series,
    )


def _events_per_ipi(storms: Storms) -> dict[str, tuple[float, float]]:
    with Tracer.load(pid=os.getpid(), n_vcpus=2) as tracer:
        tracer.attach()
        storm = storms.run(watching(tracer))
    if storm.counted is None:
        return {}
    seen = storm.counted / len(storm.sends)
    return {
        kind.name.lower(): (float(seen[kind, _SENDER]), float(seen[kind, _TARGET]))
        for kind in Kind
        if seen[kind].any()
    }


def _pairs(storms: Storms, event: str) -> tuple[list[float], list[float], float]:
    """R without and with the event's program, in cycles, and the TSC's rate."""
    cycles: dict[bool, list[float]] = {False: [], True: []}
    hz = 1.0
    with Tracer.load(pid=os.getpid(), n_vcpus=2, only=[event]) as tracer:
        for attached in mirrored([False, True], _PAIRS):
            if attached:
                tracer.attach()
                storm = storms.run(watching(tracer))
                tracer.detach()
            else:
                storm = storms.run()
            cycles[attached].append(round_trip_cycles(storm))
            hz = tsc_hz(storm)
    return cycles[False], cycles[True], hz


def on_host() -> Report:
    """A ping-pong of two processes on one CPU: two switches of the traced thread per round."""
    times: dict[str, list[float]] = {mode: [] for mode in _MODES}
    with (
        _ping_pong() as play,
        Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer,
    ):
        play(_ROUNDS)
        for mode in mirrored(_MODES, _TRIPS):
            tracer.set_vcpu_threads([] if mode == "other threads" else [os.getpid()])
            if mode != "off":
                tracer.attach(counting_only=mode == "counting")
            times[mode].append(play(_ROUNDS))
            tracer.detach()
            tracer.drain()
            tracer.take()
    off = times["off"]
    return Report(
        "Added time of the sched_switch program, on the host",
        ("mode", "ns per round", "ratio to off", "added ns per event"),
        [
            (
                mode,
                spread((t * 1e9 for t in taken), 0),
                spread((b / a for a, b in zip(off, taken, strict=True)), 3),
                spread(((b - a) * 1e9 / 2 for a, b in zip(off, taken, strict=True)), 0),
            )
            for mode, taken in times.items()
        ],
        (
            f"{_TRIPS} turns each, in mirrored order: median (middle half).",
            f"A turn is {_ROUNDS} rounds of a byte in each direction; a round is two events.",
            "Other threads: the cost of a program for a thread that is not traced.",
        ),
        [Series(f"sched_switch {mode}", SECONDS, taken) for mode, taken in times.items()],
    )


@contextmanager
def _ping_pong() -> Iterator["_Play"]:
    """A forked process that echoes bytes; both processes run on one CPU while inside."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(from_parent)
        while byte := os.read(to_child, 1):
            os.write(from_child, byte)
        os._exit(0)
    try:
        yield _Play(from_parent, to_parent)
    finally:
        for fd in (to_child, from_parent, to_parent, from_child):
            os.close(fd)
        os.waitpid(child, 0)
        os.sched_setaffinity(0, allowed)


class _Play:
    """Runs a number of rounds and returns the seconds per round."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back = out, back

    def __call__(self, rounds: int) -> float:
        read, write, out, back = os.read, os.write, self._out, self._back
        started_s = time.perf_counter()
        for _ in range(rounds):
            write(out, b"x")
            read(back, 1)
        return (time.perf_counter() - started_s) / rounds
