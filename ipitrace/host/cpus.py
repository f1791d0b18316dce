# SPDX-License-Identifier: Apache-2.0
"""Choose a CPU for each vCPU: CPUs that share a cache, never two threads of one core."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ipitrace.base.errors import UsageError
from ipitrace.host.files import HOST, HostFiles, parse_cpu_list

_CPU_DIR: Final = "/sys/devices/system/cpu"
VCPUS_PER_CPU: Final = 2
"""vCPUs that share a CPU in scenarios with overcommitted vCPUs."""


@dataclass(frozen=True)
class CpuPlace:
    """The place of one CPU in the topology."""

    cpu: int
    core: frozenset[int]
    """The CPUs of its core (itself and its SMT siblings)."""
    llc: frozenset[int]
    """The CPUs that share its last-level cache; its package if no caches are described."""
    node: int | None
    """NUMA node, None on kernels without NUMA."""


@dataclass(frozen=True)
class Pinning:
    """The chosen CPUs: `cpus[i]` is vCPU i's CPU. None if there are too few CPUs."""

    cpus: tuple[int, ...] | None
    overcommitted: bool
    why: str


def allowed_cpus() -> frozenset[int]:
    """The CPUs this process may run on (taskset, cgroup cpuset)."""
    return frozenset(os.sched_getaffinity(0))


def read_topology(files: HostFiles = HOST) -> tuple[CpuPlace, ...]:
    """The places of the online CPUs, by CPU number; () if /sys does not describe them."""
    matches = (re.fullmatch(r"cpu(\d+)", name) for name in files.names(_CPU_DIR))
    cpus = sorted(int(match[1]) for match in matches if match)
    places = (_place(files, cpu) for cpu in cpus)
    return tuple(place for place in places if place is not None)


def choose_cpus(n_vcpus: int, allowed: Collection[int], topology: Iterable[CpuPlace]) -> Pinning:
    """Choose one of the `allowed` CPUs for each vCPU.

    The criteria, the most important first: no two vCPUs on one core, one last-level cache, one
    NUMA node, and not the core of CPU 0, where most device interrupts and housekeeping run. If
    there are more CPUs than vCPUs, at least one CPU stays free for the controller. A CPU that is
    not in the topology counts as a core of its own that shares no cache. Raises UsageError for
    n_vcpus < 1.
    """
    if n_vcpus < 1:
        raise UsageError(f"A guest cannot have {n_vcpus} vCPUs.", "Ask for at least one vCPU.")
    known = {place.cpu: place for place in topology}
    places = [known.get(cpu) or _unknown_place(cpu) for cpu in sorted(allowed)]
    if n_vcpus > len(places):
        return Pinning(
            cpus=None,
            overcommitted=True,
            why=f"{n_vcpus} vCPUs do not fit on {len(places)} allowed "
            f"CPU{'s' if len(places) != 1 else ''}: the storm would measure the scheduler",
        )
    chosen = min(_choices(n_vcpus, places), key=lambda choice: choice.cost).places
    return Pinning(
        cpus=tuple(sorted(place.cpu for place in chosen)),
        overcommitted=False,
        why=_reason(chosen, places),
    )


def share_cpus(n_vcpus: int, allowed: Collection[int], topology: Iterable[CpuPlace]) -> Pinning:
    """Choose a CPU for each two of the vCPUs; `cpus` is None where that is not possible.

    vCPU i shares its CPU with vCPU i + n_vcpus / 2: with four vCPUs or more, a sender (vCPU 0) and
    its first target (vCPU 1) are on different CPUs.
    """
    n_cpus, left = divmod(n_vcpus, VCPUS_PER_CPU)
    if left:
        why = f"{n_vcpus} vCPUs cannot be divided among CPUs with {VCPUS_PER_CPU} vCPUs each"
        return Pinning(None, overcommitted=True, why=why)
    chosen = choose_cpus(n_cpus, allowed, topology)
    if chosen.cpus is None:
        why = (
            f"{n_vcpus} vCPUs, {VCPUS_PER_CPU} on each CPU, need {n_cpus} CPUs, and {len(allowed)} "
            "are allowed"
        )
        return Pinning(None, overcommitted=True, why=why)
    why = f"{VCPUS_PER_CPU} vCPUs on each CPU"
    return Pinning(chosen.cpus * VCPUS_PER_CPU, overcommitted=True, why=why)


# A CPU's groups, the closest first. The last one contains every CPU.
_LEVELS: Final[tuple[Callable[[CpuPlace], object], ...]] = (
    lambda place: place.llc,
    lambda place: place.node,
    lambda _: None,
)


@dataclass(frozen=True)
class _Choice:
    """A choice of CPUs that are all in one group at `level` (an index into _LEVELS)."""

    places: tuple[CpuPlace, ...]
    level: int

    @property
    def cost(self) -> tuple[int, int, int, tuple[int, ...]]:
        """What choose_cpus() avoids, the most important first; the CPU numbers make it unique."""
        return (
            len(self.places) - len({place.core for place in self.places}),
            self.level,
            sum(0 in place.core for place in self.places),
            tuple(place.cpu for place in self.places),
        )


def _choices(n_vcpus: int, places: list[CpuPlace]) -> Iterator[_Choice]:
    """The best choice of each group that is large enough. The group of all CPUs always is."""
    first_threads = _first_threads(places)
    best_first = sorted(
        places, key=lambda place: (place not in first_threads, 0 in place.core, place.cpu)
    )
    for level, group_of in enumerate(_LEVELS):
        groups: dict[object, list[CpuPlace]] = {}
        for place in best_first:
            groups.setdefault(group_of(place), []).append(place)
        for group in groups.values():
            if len(group) >= n_vcpus:
                yield _Choice(tuple(group[:n_vcpus]), level)


def _first_threads(places: list[CpuPlace]) -> frozenset[CpuPlace]:
    """The lowest allowed CPU of each core."""
    cores: dict[frozenset[int], CpuPlace] = {}
    for place in places:
        cores.setdefault(place.core, place)
    return frozenset(cores.values())


def _reason(chosen: tuple[CpuPlace, ...], places: list[CpuPlace]) -> str:
    cores = {place.core for place in chosen}
    free = [place for place in places if place not in chosen]
    parts = [_spread(chosen)] if len(chosen) > 1 else []
    parts.append("one core each" if len(cores) == len(chosen) else "some vCPUs share a core")
    if not free:
        parts.append("no CPU left for the controller")
    elif all(place.core in cores for place in free):
        parts.append("the controller shares a core with a vCPU")
    if any(place.cpu == 0 for place in chosen):
        parts.append("CPU 0 in use")
    return ", ".join(parts)


def _spread(chosen: tuple[CpuPlace, ...]) -> str:
    nodes = {place.node for place in chosen}
    if len({place.llc for place in chosen}) == 1:
        return "one last-level cache"
    if len(nodes) == 1:
        return "one NUMA node, several last-level caches"
    return f"{len(nodes)} NUMA nodes"


def _place(files: HostFiles, cpu: int) -> CpuPlace | None:
    directory = f"{_CPU_DIR}/cpu{cpu}"
    core = _cpus(files, f"{directory}/topology/thread_siblings_list")
    if not core:  # offline CPUs have no topology
        return None
    package = _cpus(files, f"{directory}/topology/core_siblings_list")
    nodes = (re.fullmatch(r"node(\d+)", name) for name in files.names(directory))
    node = next((int(match[1]) for match in nodes if match), None)
    return CpuPlace(cpu, core, _last_level_cache(files, directory) or package or core, node)


def _last_level_cache(files: HostFiles, directory: str) -> frozenset[int] | None:
    caches = [
        (level, f"{directory}/cache/{name}/shared_cpu_list")
        for name in files.names(f"{directory}/cache")
        if (level := files.number(f"{directory}/cache/{name}/level")) is not None
    ]
    return _cpus(files, max(caches)[1]) if caches else None


def _cpus(files: HostFiles, path: str) -> frozenset[int] | None:
    try:
        return frozenset(parse_cpu_list(files.text(path) or "")) or None
    except ValueError:
        return None


def _unknown_place(cpu: int) -> CpuPlace:
    alone = frozenset({cpu})
    return CpuPlace(cpu, alone, alone, None)
