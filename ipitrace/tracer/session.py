# SPDX-License-Identifier: Apache-2.0
"""A tracer of one VM: load once, then attach, drain and detach repeatedly."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.events import HOST_EVENT, RING_EVENT, RING_HEAD, TIDS_PER_CELL, VCPU_OF_TID
from ipitrace.base import resources
from ipitrace.base.errors import HostError
from ipitrace.base.signals import signals_deferred
from ipitrace.host.access import require_initial_pid_namespace, require_trace_privilege
from ipitrace.tracer.attaching import (
    chosen_events,
    mapped,
    plan_for_this_kernel,
    recursion_misses,
)
from ipitrace.tracer.compiler import compile_programs
from ipitrace.tracer.events import EVENTS, EventSpec
from ipitrace.tracer.kernel import n_tids
from ipitrace.tracer.loading import Bpf, load_programs, try_attach
from ipitrace.tracer.program import Hook, HookPlan, Probe, cflags, source
from ipitrace.tracer.rings import RingReader
from ipitrace.tracer.sizes import ring_slots
from ipitrace.words.events import NR_KINDS, Kind

MOST_EVENTS: Final = 16_000_000
"""The default limit of events between two calls of take(): about 400 MB."""


@dataclass(frozen=True)
class TraceLosses:
    """The events that were not recorded, by event, since the tracer was loaded.

    `ring_overruns`: records that were overwritten before they were drained, or that exceeded the
    limit of Tracer.keep_at_most().
    `recursion_misses`: events that the kernel, or our ring, dropped because a program was
    already running; they are neither counted nor recorded. The kernel's count includes events
    that our filter would exclude, so it is an upper bound. It is None if the kernel has no count.
    Classic tracepoints, kprobes and kretprobes are counted since dd8657894c11 ("bpf: Count missed
    stats in trace_call_bpf"), raw tracepoints since 05b24ff9b2cf ("bpf: Prevent bpf program
    recursion for raw tracepoint probes"), fentry and fexit since 9ed9e9ba2337 ("bpf: Count the
    number of times recursion was prevented").
    """

    ring_overruns: dict[str, int]
    recursion_misses: dict[str, int | None]


@dataclass(frozen=True)
class _Maps:
    """The programs' maps, as shared arrays.

    Attributes:
        heads: RING_HEAD of every row, (n_vcpus, n_rows).
        reader: of the rings.
        vcpu_of_tid: the vCPU plus 1 of each thread, by its tid; 0 is no traced vCPU.
    """

    heads: NDArray[np.void]
    reader: RingReader
    vcpu_of_tid: NDArray[np.uint16]


def _map(bpf: Bpf, planned: HookPlan, n_vcpus: int, slots_per_ring: int) -> _Maps:
    shape = (n_vcpus, max(planned.n_rings, 1), slots_per_ring)
    slots = mapped(bpf["slots"].map_fd, RING_EVENT, shape[0] * shape[1] * shape[2])
    heads = mapped(bpf["heads"].map_fd, RING_HEAD, n_vcpus * len(planned.probes))
    heads = heads.reshape(n_vcpus, -1)
    cells = mapped(bpf["vcpu_of_tid"].map_fd, VCPU_OF_TID, n_tids() // TIDS_PER_CELL)
    reader = RingReader(slots.reshape(shape)[:, : planned.n_rings], heads)
    return _Maps(heads, reader, cells["vcpu_plus_1"].reshape(-1))


class Tracer:
    """Host events of one process's vCPU threads.

    Load in the main thread before other threads start: if tracefs is not mounted, loading enters
    a private mount namespace (see tracefs.py).
    """

    def __init__(
        self,
        bpf: Bpf,
        probes: tuple[Probe, ...],
        rows: tuple[Probe, ...],
        maps: _Maps,
    ) -> None:
        """Take ownership of a compiled `bpf`; use Tracer.load()."""
        self._bpf: Bpf | None = bpf
        self._probes = probes
        self._rows = rows  # the probe of each row of the rings, in order
        self._maps: _Maps | None = maps
        self._reader: RingReader | None = maps.reader
        self._tids: tuple[int, ...] = ()
        self._switch_cpus: tuple[int, ...] = ()
        self._drained: list[tuple[int, int, NDArray[np.void]]] = []
        self._news: list[tuple[int, int, NDArray[np.void]]] = []
        self._most = self._room = MOST_EVENTS
        self._links: dict[str, Probe] = {}
        self._last_seen: NDArray[np.uint64]
        self._last_losses: TraceLosses
        self._last_unattributed: dict[str, int]
        self._n_vcpus = len(maps.heads)
        self.slots_per_ring = maps.reader.n_slots
        self.left_out: dict[str, str] = {}
        self.load_s = 0.0
        self.attach_s = 0.0
        self.detach_s = 0.0

    @classmethod
    def load(
        cls,
        *,
        pid: int,
        n_vcpus: int,
        slots_per_ring: int | None = None,
        only: Collection[str] | None = None,
        events: tuple[EventSpec, ...] = EVENTS,
    ) -> Self:
        """Load for process `pid` without attaching.

        `slots_per_ring` (a power of two) limits the records of one event of one vCPU between two
        drains; a slot is 24 bytes. By default ring_slots() chooses it. `events` are those to
        trace, `only` names some of them.
        Raises HostError if BPF cannot be used, UsageError for unknown names.
        """
        started_s = time.perf_counter()
        chosen = chosen_events(only, events)
        require_trace_privilege()
        require_initial_pid_namespace()
        planned = plan_for_this_kernel(chosen)
        if not planned.probes:
            raise HostError(
                "This kernel has none of the requested events.",
                "; ".join(f"{name}: {why}" for name, why in planned.left_out.items())
                or "Choose at least one event.",
            )
        if slots_per_ring is None:
            slots_per_ring = ring_slots(n_vcpus, planned.n_rings)
        if slots_per_ring < 2 or slots_per_ring & (slots_per_ring - 1):  # noqa: PLR2004
            raise ValueError(f"slots_per_ring is not a power of two: {slots_per_ring}")
        directory = resources.bpf_dir()
        bpf = compile_programs(
            source(planned, directory),
            cflags(planned, directory, slots_per_ring=slots_per_ring),
            directory,
            {
                "slots": n_vcpus * max(planned.n_rings, 1) * slots_per_ring,
                "heads": n_vcpus * len(planned.probes),
                "vcpu_of_tid": n_tids() // TIDS_PER_CELL,
            },
        )
        try:
            bpf["our_process"][0] = pid
            accepted, refused = load_programs(bpf, planned)
            maps = _map(bpf, planned, n_vcpus, slots_per_ring)
        except BaseException:
            bpf.close()
            raise
        tracer = cls(bpf, accepted, planned.probes, maps)
        tracer.left_out = {**planned.left_out, **refused}
        tracer.load_s = time.perf_counter() - started_s
        return tracer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hooks(self) -> dict[str, Hook]:
        """The hook of each loaded event; attach() can replace a fentry or fexit by a kprobe."""
        return {probe.event.name: probe.hook for probe in self._probes}

    @property
    def program_fds(self) -> dict[str, int]:
        """The descriptor of each loaded event's program."""
        bpf = self._open_bpf()
        return {probe.event.name: bpf.program_fd(probe.function) for probe in self._probes}

    @property
    def attached(self) -> tuple[str, ...]:
        """The events that are attached now."""
        return tuple(self._links)

    @property
    def left_detached(self) -> frozenset[Kind]:
        """The loaded events that are not attached now."""
        detached = (probe.event for probe in self._probes if probe.event.name not in self._links)
        return frozenset(event.kind for event in detached)

    def set_vcpu_threads(self, tids: Sequence[int], switches_on: Sequence[int] = ()) -> None:
        """Trace only these threads; tids[i] is the thread of vCPU i.

        Call it while detached or while the vCPUs do not run: a ring supports one writer at a
        time.

        Args:
            tids: the threads.
            switches_on: the CPU that vCPU i is pinned to, in order to record the switches between
                other threads on these CPUs, too; see correlate.switches.of_others(). A vCPU that
                moved to another CPU would give its ring a second writer.
        """
        if len(tids) > self._n_vcpus:
            raise ValueError(f"{len(tids)} threads for {self._n_vcpus} vCPUs")
        table = self._open_maps().vcpu_of_tid
        if max(tids, default=0) >= len(table):
            raise HostError(
                f"Thread {max(tids)} is beyond the limit of thread ids when tracing began.",
                "kernel.pid_max was raised meanwhile: run again.",
            )
        table[list(self._tids)] = 0
        self._tids = tuple(tids)
        table[list(tids)] = np.arange(1, len(tids) + 1)
        self._record_switches_on({cpu: switches_on.index(cpu) for cpu in switches_on})

    def _record_switches_on(self, vcpu_of_cpu: Mapping[int, int]) -> None:
        asked = self._open_bpf()["vcpu_of_cpu"]
        for cpu in self._switch_cpus:
            asked[cpu] = 0
        self._switch_cpus = tuple(vcpu_of_cpu)
        for cpu, vcpu in vcpu_of_cpu.items():
            asked[cpu] = vcpu + 1

    @signals_deferred()
    def attach(self, *, counting_only: bool = False, without: Collection[Kind] = ()) -> None:
        """Start counting and recording, or only counting; events of `without` are detached.

        `counting_only` omits time stamps and records: seen() continues, drain() finds nothing
        new. It can be changed while attached, and while the vCPUs run: each event is either
        recorded or counted, so none is lost. Raises HostError if nothing can be attached.
        """
        bpf = self._open_bpf()
        started_s, was_attached = time.perf_counter(), bool(self._links)
        self._open_maps().heads["count_only"] = counting_only
        for name in [n for n, probe in self._links.items() if probe.event.kind in without]:
            bpf.detach(self._links.pop(name).function)
        for probe in self._probes:
            name = probe.event.name
            if name in self._links or probe.event.kind in without:
                continue
            chosen, failure = try_attach(bpf, probe)
            if failure:
                self.left_out[name] = failure
            else:
                self._links[name] = chosen
                self.left_out.pop(name, None)
        self._probes = tuple(self._links.get(one.event.name, one) for one in self._probes)
        if not was_attached:
            self.attach_s = time.perf_counter() - started_s
        if not self._links:
            raise HostError("No event could be attached.", next(iter(self.left_out.values()), ""))

    @signals_deferred()
    def detach(self) -> None:
        """Detach; the events have no cost afterwards. Recorded events stay readable."""
        bpf = self._open_bpf()
        started_s = time.perf_counter()
        for probe in self._links.values():
            bpf.detach(probe.function)
        self._links.clear()
        self.detach_s = time.perf_counter() - started_s

    def seen(self) -> NDArray[np.uint64]:
        """Number of events so far, (NR_KINDS, n_vcpus); 0 for events that are not attached.

        Column 0 also has the APICv inhibits, TSC offset writes, posted-interrupt updates and VMX
        deliveries in threads of the process that are not vCPU threads; these leave no record.
        """
        if self._reader is None:
            return self._last_seen.copy()
        by_kind = np.zeros((NR_KINDS, self._n_vcpus), np.uint64)
        by_kind[[probe.event.kind for probe in self._rows]] = self._reader.seen().T
        return by_kind

    def unattributed(self) -> dict[str, int]:
        """Runs of posted-interrupt handlers outside our vCPUs' threads since load, by event.

        They may have run for one of our vCPUs or for another VM; this cannot be determined. They
        are not part of seen(). Empty if the kernel does not allow any of them to be probed.
        """
        if self._reader is None:
            return self._last_unattributed.copy()
        per_cpu = self._open_bpf()["unattributed"]
        return {
            probe.event.name: per_cpu[row]
            for row, probe in enumerate(self._rows)
            if probe.event.any_context
        }

    def keep_at_most(self, events: int) -> None:
        """Limit the events kept between two calls of take(); the others are lost, and counted.

        The guest determines the number of its exits; this limits the host memory that they use.
        """
        self._most = self._room = events

    def drain(self) -> int:
        """Copy new records out of the rings; to be called as often as DrainPace says.

        Returns the most new records of one ring.
        """
        if self._reader is None:
            return 0
        news = self._reader.drain(self._room)
        self._room -= sum(len(records) for _, _, records in news)
        self._drained += news
        self._news = news
        return self._reader.fullest

    def news(self, kind: Kind) -> NDArray[np.void]:
        """The records of one kind that the last drain() found, as RING_EVENT; take() keeps them."""
        found = [records for _, row, records in self._news if self._rows[row].event.kind == kind]
        return np.concatenate([np.empty(0, RING_EVENT), *found])

    def take(self) -> NDArray[np.void]:
        """Every event drained since the last call, as HOST_EVENT sorted by ts_ns."""
        drained, self._drained = self._drained, []
        self._room = self._most
        events = np.zeros(sum(len(records) for _, _, records in drained), HOST_EVENT)
        at = 0
        for vcpu, row, records in drained:
            part = events[at : at + len(records)]
            for name in RING_EVENT.names or ():
                part[name] = records[name]
            part["vcpu"] = vcpu
            part["kind"] = self._rows[row].event.kind
            at += len(records)
        return events[np.argsort(events["ts_ns"], kind="stable")]

    def losses(self) -> TraceLosses:
        """The losses since load."""
        if self._reader is None:
            return self._last_losses
        overruns = self._reader.lost.sum(axis=0)
        nested = self._reader.missed().sum(axis=0)
        row_of = {probe.event.name: row for row, probe in enumerate(self._rows)}
        misses: dict[str, int | None] = {}
        for probe in self._probes:
            name = probe.event.name
            missed = recursion_misses(self._open_bpf().program_fd(probe.function))
            misses[name] = None if missed is None else missed + int(nested[row_of[name]])
        return TraceLosses(
            {
                probe.event.name: int(overruns[row_of[probe.event.name]])
                for probe in self._probes
                if probe.event.recorded
            },
            misses,
        )

    @signals_deferred()
    def close(self) -> None:
        """Detach and free everything; drained events can still be taken."""
        if self._reader is None:
            return
        self._last_seen, self._last_losses = self.seen(), self.losses()
        self._last_unattributed = self.unattributed()
        self.detach()
        self._reader = self._maps = None
        bpf, self._bpf = self._open_bpf(), None
        bpf.close()

    def _open_maps(self) -> _Maps:
        if self._maps is None:
            raise ValueError("the tracer is closed")
        return self._maps

    def _open_bpf(self) -> Bpf:
        if self._bpf is None:
            raise ValueError("the tracer is closed")
        return self._bpf
