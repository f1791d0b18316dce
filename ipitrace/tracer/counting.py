# SPDX-License-Identifier: Apache-2.0
"""Count events of vCPUs without recording them.

The memory, and the time to read the counts, do not grow with the number of events.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.watch import WATCH_CELL, WATCH_CLAIM, WATCH_HEAD, Total
from ipitrace.base import resources
from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.base.signals import signals_deferred
from ipitrace.host.access import require_initial_pid_namespace, require_trace_privilege
from ipitrace.tracer import kernel
from ipitrace.tracer.attaching import (
    chosen_events,
    mapped,
    plan_for_this_kernel,
    recursion_misses,
)
from ipitrace.tracer.compiler import compile_programs
from ipitrace.tracer.loading import Bpf, load_programs, try_attach
from ipitrace.tracer.program import WATCH_SOURCES, Hook, Probe, source, watch_cflags

HV_SENDS: Final = ("kvm_hv_send_ipi", "kvm_hv_send_ipi_ex")
EVENTS: Final = (
    "kvm_exit",
    "kvm_entry",
    "kvm_apic_ipi",
    "kvm_apic_accept_irq",
    "kvm_apicv_accept_irq",
    "kvm_hypercall",
    "kvm_vcpu_wakeup",
    "kvm_avic_incomplete_ipi",
    *HV_SENDS,
    "kvm_xen_hypercall",
    "kvm_pv_tlb_flush",
)
# kvm_msr adds a cost to every MSR exit, and no information if kvm_exit and kvm_entry are attached.
ENDS_SENDS: Final = "kvm_msr"
NEEDED: Final = ("kvm_apic_ipi", "kvm_apic_accept_irq")


@dataclass(frozen=True)
class Counts:
    """Counts of some slots at two moments; a count only grows while its slot has the same thread.

    Attributes:
        heads_before, heads: WATCH_HEAD (slots read,).
        slot: for each cell in use, the index of its slot in the slots read (0, 1, ...), ascending.
        key: the counted item.
        before, now: the count at each of the two moments.
    """

    heads_before: NDArray[np.void]
    heads: NDArray[np.void]
    slot: NDArray[np.intp]
    key: NDArray[np.uint64]
    before: NDArray[np.uint64]
    now: NDArray[np.uint64]


@dataclass(frozen=True, order=True)
class Claim:
    """A slot that a vCPU thread has taken by itself, at its first event.

    Attributes:
        since_ns, slot: the slot has the thread's counts from this time on (CLOCK_MONOTONIC).
        pid, tid: the thread, and its process.
        uid: the thread's real user id.
        comm: the thread's name for itself, which any user may set to anything.
    """

    since_ns: int
    slot: int
    pid: int
    tid: int
    uid: int
    comm: str


@dataclass(frozen=True)
class Noted:
    """vCPU threads that found no free slot.

    Attributes:
        sends: all their requests to KVM to send, since the counters were loaded.
        threads: how many were noted since then. A thread that the kernel dropped, or that was
            returned in `of_thread`, is noted again at its next event.
        of_thread: requests by (process, thread) since the last call, including threads with none.
            These are lower bounds: events between reading and removing are lost, and so are the
            threads that the kernel dropped because there were too many.
    """

    sends: int
    threads: int
    of_thread: Mapping[tuple[int, int], int]


class Counting:
    """Counters in slots, one slot for each watched vCPU; threads are assigned to slots."""

    def __init__(
        self,
        bpf: Bpf,
        probes: tuple[Probe, ...],
        heads: NDArray[np.void],
        cells: NDArray[np.void],
        left_out: dict[str, str],
    ) -> None:
        """Take ownership of a compiled `bpf`; use Counting.load()."""
        self._bpf: Bpf | None = bpf
        self._probes = probes
        self._heads, self._cells = heads, cells
        # Values of the last read.
        self._former_heads = np.zeros_like(heads)
        self._former = np.zeros(cells.shape, np.uint64)
        self._links: list[Probe] = []
        self._claims = np.zeros(0, WATCH_CLAIM)  # mapped if threads may take slots
        self.left_out = left_out

    @classmethod
    def load(cls, *, n_slots: int, n_cells: int, n_strangers: int = 0) -> Self:
        """Compile, load and attach; nothing is counted until a slot has a thread.

        `n_cells`, a power of two, limits the number of different items in a slot.
        `n_strangers` is the number of threads that are noted if they have no slot and find none
        to take. With 0 none is noted, and no thread takes a slot by itself.
        Call it in the main thread before other threads start: if tracefs is not mounted, this
        enters a private mount namespace (see tracefs.py).

        Raises:
            HostError: BPF cannot be used, or this kernel lacks the events of NEEDED.
        """
        if n_cells < 2 or n_cells & (n_cells - 1):  # noqa: PLR2004
            raise ValueError(f"n_cells is not a power of two: {n_cells}")
        require_trace_privilege()
        require_initial_pid_namespace()
        events = EVENTS if kernel.host_isa() else (*EVENTS, ENDS_SENDS)
        planned = plan_for_this_kernel(chosen_events(events))
        _require(planned.left_out)
        directory = resources.bpf_dir()
        bpf = compile_programs(
            source(planned, directory, WATCH_SOURCES),
            watch_cflags(
                planned,
                directory,
                n_cells=n_cells,
                counts_strangers=n_strangers > 0,
            ),
            directory,
            {
                "cells": n_slots * n_cells,
                "heads": n_slots,
                "slot_of_tid": n_slots,
                "strangers": n_strangers,
                "claims": n_slots,
                "free_slots": n_slots,
            },
        )
        try:
            accepted, refused = load_programs(bpf, planned)
            heads = mapped(bpf["heads"].map_fd, WATCH_HEAD, n_slots)
            cells = mapped(bpf["cells"].map_fd, WATCH_CELL, n_slots * n_cells)
            claims = mapped(bpf["claims"].map_fd, WATCH_CLAIM, n_slots) if n_strangers else None
        except BaseException:
            bpf.close()
            raise
        left_out = {**planned.left_out, **refused}
        counting = cls(bpf, accepted, heads, cells.reshape(n_slots, n_cells), left_out)
        if claims is not None:
            counting._claims = claims
        try:
            counting._attach()
        except BaseException:
            counting.close()
            raise
        return counting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_slots(self) -> int:
        """The number of vCPUs that can be watched at the same time."""
        return len(self._heads)

    @property
    def hooks(self) -> dict[str, Hook]:
        """The hook of each attached event."""
        return {probe.event.name: probe.hook for probe in self._links}

    @property
    def lets_claim(self) -> bool:
        """Whether vCPU threads without a slot may take one."""
        return len(self._claims) > 0

    def give(self, slot: int, tid: int) -> int:
        """Count the events of thread `tid`, which has no slot, in `slot`, from 0.

        Returns the thread's slot: another one if the thread has taken it meanwhile.

        A slot that take() freed keeps its counts until then. It must not be assigned again at
        once: a program that began before take() may still write to it.
        """
        self._clear(slot)
        table = self._open_bpf()["slot_of_tid"]
        while True:
            try:
                table.insert(tid, slot)
            except FileExistsError:
                with contextlib.suppress(KeyError):
                    return table[tid]
            else:
                return slot

    def take(self, tid: int) -> None:
        """Stop counting the events of thread `tid`."""
        del self._open_bpf()["slot_of_tid"][tid]

    def slot_of(self, tid: int) -> int | None:
        """The slot of a thread; None if it has none."""
        try:
            return self._open_bpf()["slot_of_tid"][tid]
        except KeyError:
            return None

    def offer(self, slot: int) -> None:
        """Let a vCPU thread that has no slot take this one, which nothing uses."""
        self._clear(slot)
        self._open_bpf()["free_slots"].push(slot)

    def claimed(self) -> list[int]:
        """The slots that threads have taken, until they are offered or given again."""
        return np.flatnonzero(self._claims["thread"]).tolist()

    def claim(self, slot: int) -> Claim:
        """Who has taken this slot, which is one of claimed()."""
        claim = self._claims[slot]
        thread = int(claim["thread"])
        name = claim["comm"].tobytes().partition(b"\0")[0].decode(errors="replace")
        return Claim(
            int(claim["since_ns"]),
            slot,
            thread >> 32,
            thread & 0xFFFFFFFF,
            int(claim["uid"]),
            plain(name),
        )

    def _clear(self, slot: int) -> None:
        self._heads[slot] = 0
        self._cells[slot] = 0
        self._former_heads[slot] = 0
        self._former[slot] = 0
        if self.lets_claim:
            self._claims[slot] = 0

    def read(self, slots: Sequence[int]) -> Counts:
        """The counts of these slots at the previous read, and now."""
        at = np.asarray(slots, np.intp)
        heads, heads_before = self._heads[at], self._former_heads[at]
        slot, cell = np.nonzero(self._cells["key"][at])
        where = at[slot], cell
        cells, before = self._cells[where], self._former[where]
        self._former_heads[at], self._former[where] = heads, cells["count"]
        return Counts(heads_before, heads, slot, cells["key"], before, cells["count"])

    def as_read(self, slots: Sequence[int]) -> Counts:
        """The counts of these slots from the beginning to the previous read."""
        at = np.asarray(slots, np.intp)
        heads = self._former_heads[at]
        slot, cell = np.nonzero(self._former[at])
        where = at[slot], cell
        now = self._former[where]
        key = self._cells["key"][where]
        return Counts(np.zeros_like(heads), heads, slot, key, np.zeros_like(now), now)

    def sends(self, slots: Sequence[int]) -> int:
        """The requests to KVM to send that are counted in these slots now."""
        return int(self._heads["sends"][np.asarray(slots, np.intp)].sum())

    def activity(self) -> NDArray[np.uint64]:
        """A number for each slot that grows with every counted event."""
        # Every program first counts the event, or that it was missed (watch.bpf.c).
        grown: NDArray[np.uint64] = self._heads["events"] + self._heads["missed"]
        return grown

    def strangers(self) -> Noted:
        """The vCPU threads that found no free slot; those that are returned are removed."""
        if not self.lets_claim:
            return Noted(0, 0, {})
        bpf = self._open_bpf()
        table, totals = bpf["strangers"], bpf["stranger_totals"]
        threads = totals[Total.STRANGERS]  # before the table: none of them may be missing there
        found: dict[tuple[int, int], int] = {}
        for key in list(table.keys()):
            with contextlib.suppress(KeyError):  # the kernel has dropped it
                found[key >> 32, key & 0xFFFFFFFF] = table[key]
                del table[key]
        return Noted(totals[Total.STRANGER_SENDS], threads, found)

    def recursion_misses(self) -> dict[str, int | None]:
        """Events of the whole host that the kernel did not pass to a program, by event, since load.

        They occurred on a CPU on which the same program was running. None if the kernel has no
        count (see TraceLosses).
        """
        bpf = self._open_bpf()
        return {
            probe.event.name: recursion_misses(bpf.program_fd(probe.function))
            for probe in self._links
        }

    def programs(self) -> dict[str, Path]:
        """The kernel's statistics of each attached program (fdinfo), by event."""
        bpf = self._open_bpf()
        return {
            probe.event.name: Path(f"/proc/self/fdinfo/{bpf.program_fd(probe.function)}")
            for probe in self._links
        }

    @signals_deferred()
    def close(self) -> None:
        """Detach and free everything."""
        bpf, self._bpf = self._bpf, None
        if bpf is None:
            return
        for probe in self._links:
            bpf.detach(probe.function)
        self._links.clear()
        # A mapping keeps a descriptor of its map open.
        self._heads, self._cells = np.empty(0, WATCH_HEAD), np.empty((0, 0), WATCH_CELL)
        self._claims = np.empty(0, WATCH_CLAIM)
        bpf.close()

    @signals_deferred()
    def _attach(self) -> None:
        """Attach every program.

        Raises:
                HostError: one of NEEDED could not be attached.
        """
        bpf = self._open_bpf()
        for probe in self._probes:
            chosen, failure = try_attach(bpf, probe)
            if failure:
                self.left_out[probe.event.name] = failure
            else:
                self._links.append(chosen)
        _require(self.left_out)

    def _open_bpf(self) -> Bpf:
        if self._bpf is None:
            raise ValueError("the counters are closed")
        return self._bpf


def _require(left_out: Mapping[str, str]) -> None:
    """Raise HostError if one of NEEDED was left out."""
    for name in NEEDED:
        if name in left_out:
            raise HostError(
                f"IPIs cannot be counted: {name} cannot be attached ({left_out[name]}).",
                "Check whether KVM's module is loaded.",
            )
