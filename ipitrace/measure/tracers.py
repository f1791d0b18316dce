# SPDX-License-Identifier: Apache-2.0
"""The two tracers of a run: a light one of the stages' events, and one of all events."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.weights import TwinDistance, twin_distances
from ipitrace.host.access import NO_TRACE, require_initial_pid_namespace, require_trace_privilege
from ipitrace.tracer.events import STAGE_EVENTS
from ipitrace.tracer.session import TraceLosses, Tracer
from ipitrace.words.events import HOST_EVENT_OF, HOST_EVENTS, Kind
from ipitrace.words.scenarios import Mode

ONLY_COUNTED: Final = frozenset(event.kind for event in HOST_EVENTS if not event.recorded)
"""The events that are not recorded."""

Twins: TypeAlias = Mapping[Kind, TwinDistance]


@dataclass(frozen=True)
class Tracers:
    """The tracers of a run.

    Attributes:
        stages: records the events of the stages, with as few programs and values as possible.
        evidence: records all events: they prove paths, and show exits and their reasons.
    """

    stages: Tracer
    evidence: Tracer

    def attached_in(self, mode: Mode) -> tuple[Tracer, ...]:
        """The tracers of a mode, in the order in which their programs run for the same event.

        In the mode EVIDENCE both record: the distance of their stamps is what a program takes.
        """
        return {Mode.STAGES: (self.stages,), Mode.EVIDENCE: self._both}.get(mode, ())

    def set_mode(self, mode: Mode, *, counted_too: bool = True) -> None:
        """Attach the tracers of the mode, and detach the others.

        The kernel runs programs of a tracepoint in the order in which they were attached.

        Args:
            mode: of the next repetition.
            counted_too: also attach the events that are only counted. They can be frequent, and
                delay the IPIs of all VMs of the host; a few repetitions are enough to count them.
        """
        wanted = self.attached_in(mode)
        for tracer in (self.evidence, self.stages):
            if tracer not in wanted:
                tracer.detach()
        for tracer in wanted:
            tracer.attach(without=() if counted_too else ONLY_COUNTED)

    def recording_in(self, mode: Mode) -> Tracer:
        """The tracer whose records a traced mode is for."""
        return self.attached_in(mode)[-1]

    def attach_alone(self, mode: Mode) -> Tracer:
        """Attach only the tracer whose records the mode is for, and return it."""
        self.set_mode(Mode.OFF)
        tracer = self.recording_in(mode)
        tracer.attach()
        return tracer

    def twins(self, first: NDArray[np.void], second: NDArray[np.void]) -> Twins:
        """The distances of both tracers' stamps, of events where both have the same program.

        Args:
            first: host events of `stages`.
            second: host events of `evidence`.
        """
        hooks = self.evidence.hooks
        same = {name for name, hook in self.stages.hooks.items() if hook == hooks.get(name)}
        found = twin_distances(first, second)
        return {kind: at for kind, at in found.items() if HOST_EVENT_OF[kind].name in same}

    def exits_fire(self) -> bool:
        """Whether kvm_exit was seen since load."""
        return any(bool(tracer.seen()[Kind.KVM_EXIT].any()) for tracer in self._both)

    def n_seen(self) -> int:
        """The number of events since load."""
        return sum(int(tracer.seen().sum()) for tracer in self._both)

    def losses(self) -> TraceLosses:
        """The losses of both since load."""
        one, other = (tracer.losses() for tracer in self._both)
        names = dict.fromkeys((*one.ring_overruns, *other.ring_overruns))
        return TraceLosses(
            {n: one.ring_overruns.get(n, 0) + other.ring_overruns.get(n, 0) for n in names},
            {
                name: _added(one.recursion_misses.get(name, 0), other.recursion_misses.get(name, 0))
                for name in dict.fromkeys((*one.recursion_misses, *other.recursion_misses))
            },
        )

    @property
    def load_s(self) -> float:
        """The time to load the programs."""
        return sum(tracer.load_s for tracer in self._both)

    @property
    def attach_s(self) -> float:
        """The time to attach them all."""
        return sum(tracer.attach_s for tracer in self._both)

    @property
    def _both(self) -> tuple[Tracer, Tracer]:
        return self.stages, self.evidence


def _added(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@contextlib.contextmanager
def open_tracers(pid: int, n_vcpus: int) -> Iterator[Tracers]:
    """Load both tracers for the VM of a process; free them at the end.

    Raises:
        HostError: BPF cannot be used; the hint names --no-trace.
    """
    require_trace_privilege(otherwise=NO_TRACE)
    require_initial_pid_namespace(otherwise=NO_TRACE)
    with (
        Tracer.load(pid=pid, n_vcpus=n_vcpus, events=STAGE_EVENTS) as stages,
        Tracer.load(pid=pid, n_vcpus=n_vcpus) as evidence,
    ):
        yield Tracers(stages, evidence)
