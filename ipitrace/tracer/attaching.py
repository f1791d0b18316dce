# SPDX-License-Identifier: Apache-2.0
"""Common operations on sets of BPF programs: plan, map, attach, detach, free."""

import mmap
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipitrace.base.errors import UsageError
from ipitrace.tracer import kernel
from ipitrace.tracer.events import EVENT_BY_NAME, EVENTS, EventSpec
from ipitrace.tracer.program import HookPlan, plan
from ipitrace.tracer.tracefs import ensure_tracefs, find_tracefs


def chosen_events(
    only: Collection[str] | None, events: tuple[EventSpec, ...] = EVENTS
) -> tuple[EventSpec, ...]:
    """Those of `events` with these names, or all; raises UsageError for unknown names."""
    if only is None:
        return events
    unknown = sorted(set(only) - EVENT_BY_NAME.keys())
    if unknown:
        raise UsageError(
            f"There is no host event {', '.join(unknown)}.",
            f"Choose from {', '.join(EVENT_BY_NAME)}.",
        )
    return tuple(event for event in events if event.name in only)


def _tracefs(*, mount: bool) -> tuple[Path | None, str | None]:
    if mount:
        return ensure_tracefs()
    found = find_tracefs()
    why = "tracefs is not mounted; loading mounts it in its own namespace and may find it there"
    return found, None if found else why


def _functions(
    events: Collection[EventSpec], *, mount: bool
) -> tuple[frozenset[str], dict[str, str]]:
    """The functions of the events that can be probed, and the reasons for the others.

    bcc uses tracefs to detach a kprobe. Without tracefs, bcc would assume a failure and close the
    same file descriptor again later.
    """
    functions, why = kernel.function_offer([event.symbol for event in events if event.symbol])
    no_tracefs = _tracefs(mount=mount)[1] if functions else None
    if no_tracefs is None:
        return functions, why
    return frozenset(), why | dict.fromkeys(functions, no_tracefs)


def plan_for_this_kernel(events: Collection[EventSpec], *, mount: bool = True) -> HookPlan:
    """HookPlan raw tracepoints where they suffice; tracefs is used only where they do not.

    Without `mount` nothing is mounted, and events that need tracefs may be left out.
    """
    functions, no_functions = _functions(events, mount=mount)
    offer = replace(
        kernel.raw_offer(EVENTS),
        functions=functions,
        no_functions=no_functions,
        host_isa=kernel.host_isa(),
        can_nest=kernel.programs_nest(os.uname().release),
    )
    raw = plan(events, offer)
    missing = [EVENT_BY_NAME[name] for name in raw.left_out if not EVENT_BY_NAME[name].symbol]
    if not missing:
        return raw
    tracefs, no_columns = _tracefs(mount=mount)
    columns = kernel.classic_columns(missing, tracefs) if tracefs else {}
    return plan(events, replace(offer, columns=columns, no_columns=no_columns))


def mapped(map_fd: int, dtype: np.dtype[np.void], count: int) -> NDArray[np.void]:
    """A BPF array as a shared NumPy array; the mapping exists as long as the array."""
    size = -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(map_fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, dtype, count)


def recursion_misses(program_fd: int) -> int | None:
    """The kernel's count of recursion misses of a program; None if the kernel has no count."""
    return program_info(program_fd).get("recursion_misses")


def program_info(program_fd: int) -> dict[str, int]:
    """The numbers that the kernel has about a loaded program (bpf_prog_show_fdinfo())."""
    text = Path(f"/proc/self/fdinfo/{program_fd}").read_text()
    lines = (line.partition(":\t") for line in text.splitlines())
    return {name: int(value) for name, _, value in lines if value.isdecimal()}
