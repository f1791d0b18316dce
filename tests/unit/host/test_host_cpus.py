# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.base.errors import UsageError
from ipitrace.host.cpus import CpuPlace, Pinning, choose_cpus, read_topology, share_cpus
from ipitrace.host.files import HostFiles

Make = Callable[[Mapping[str, str]], HostFiles]


def machine(
    nodes: int, llcs: int, cores: int, threads: int, *, adjacent: bool = False
) -> tuple[CpuPlace, ...]:
    """`cores` for each of `llcs` caches for each of `nodes`; siblings numbered n and
    n + all cores (as on most servers), or next to each other."""
    n_cores = nodes * llcs * cores

    def cpu(core: int, thread: int) -> int:
        return core * threads + thread if adjacent else core + thread * n_cores

    places = []
    for core in range(n_cores):
        first = core // cores * cores
        llc = frozenset(
            cpu(mate, thread) for mate in range(first, first + cores) for thread in range(threads)
        )
        siblings = frozenset(cpu(core, thread) for thread in range(threads))
        places += [CpuPlace(n, siblings, llc, core // (cores * llcs)) for n in siblings]
    return tuple(sorted(places, key=lambda place: place.cpu))


machines = st.builds(
    machine,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 2),
    adjacent=st.booleans(),
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, frozenset[int], tuple[CpuPlace, ...]]:
    topology = draw(machines)
    allowed = draw(st.frozensets(st.sampled_from([place.cpu for place in topology]), min_size=1))
    return draw(st.integers(1, len(topology) + 2)), allowed, topology


Request = tuple[int, frozenset[int], tuple[CpuPlace, ...]]


def cores_of(cpus: frozenset[int], topology: tuple[CpuPlace, ...]) -> set[frozenset[int]]:
    return {place.core for place in topology if place.cpu in cpus}


@given(requests())
def test_a_cpu_each_or_overcommitted(ask: Request) -> None:
    n_vcpus, allowed, topology = ask
    pinning = choose_cpus(n_vcpus, allowed, topology)
    assert pinning.why
    assert pinning.overcommitted == (n_vcpus > len(allowed))
    if pinning.overcommitted:
        assert pinning.cpus is None
    else:
        assert pinning.cpus is not None
        assert len(pinning.cpus) == len(set(pinning.cpus)) == n_vcpus
        assert set(pinning.cpus) <= allowed


@given(requests())
def test_no_shared_core_unless_there_are_too_few(ask: Request) -> None:
    n_vcpus, allowed, topology = ask
    pinning = choose_cpus(n_vcpus, allowed, topology)
    if pinning.cpus is not None:
        used = len(cores_of(frozenset(pinning.cpus), topology))
        assert used == min(n_vcpus, len(cores_of(allowed, topology)))


@given(requests())
def test_as_near_together_as_separate_cores_allow(ask: Request) -> None:
    n_vcpus, allowed, topology = ask
    pinning = choose_cpus(n_vcpus, allowed, topology)
    places = {place.cpu: place for place in topology}
    for level in ("llc", "node"):
        groups = {getattr(place, level) for place in topology}
        for group in groups:
            members = frozenset(c for c in allowed if getattr(places[c], level) == group)
            if len(cores_of(members, topology)) >= n_vcpus:
                assert pinning.cpus is not None
                assert len({getattr(places[c], level) for c in pinning.cpus}) == 1


@given(requests())
def test_core_0_only_when_a_cache_has_no_others(ask: Request) -> None:
    n_vcpus, allowed, topology = ask
    pinning = choose_cpus(n_vcpus, allowed, topology)
    for llc in {place.llc for place in topology}:
        cores = cores_of(allowed & llc, topology)
        if len([core for core in cores if 0 not in core]) >= n_vcpus:
            assert pinning.cpus is not None
            assert not any(0 in core for core in cores_of(frozenset(pinning.cpus), topology))


@given(requests(), st.randoms())
def test_order_of_the_topology_does_not_matter(ask: Request, random: Random) -> None:
    n_vcpus, allowed, topology = ask
    shuffled = list(topology)
    random.shuffle(shuffled)
    assert choose_cpus(n_vcpus, allowed, shuffled) == choose_cpus(n_vcpus, allowed, topology)


LAPTOP = machine(1, 1, 4, 2)
SERVER = machine(2, 2, 4, 2)


@pytest.mark.parametrize(
    ("n_vcpus", "allowed", "topology", "cpus", "why"),
    [
        (2, range(8), LAPTOP, (1, 2), "one last-level cache, one core each"),
        (1, range(8), LAPTOP, (1,), "one core each"),
        (
            4,
            range(8),
            LAPTOP,
            (0, 1, 2, 3),
            (
                "one last-level cache, one core each, the controller shares a core with a vCPU, "
                "CPU 0 in use"
            ),
        ),
        (
            2,
            {3, 7},
            LAPTOP,
            (3, 7),
            "one last-level cache, some vCPUs share a core, no CPU left for the controller",
        ),
        (4, range(32), SERVER, (4, 5, 6, 7), "one last-level cache, one core each"),
        (
            6,
            range(32),
            SERVER,
            (1, 2, 3, 4, 5, 6),
            "one NUMA node, several last-level caches, one core each",
        ),
        (
            2,
            {1, 9},
            SERVER,
            (1, 9),
            "2 NUMA nodes, one core each, no CPU left for the controller",
        ),
        (
            2,
            {5, 6},
            (),
            (5, 6),
            (
                "one NUMA node, several last-level caches, one core each, "
                "no CPU left for the controller"
            ),
        ),
        (
            # Two threads of core 0 and two of core 1 would fit in one cache, but share twice.
            4,
            {0, 16, 1, 17, 4},
            SERVER,
            (0, 1, 4, 17),
            (
                "one NUMA node, several last-level caches, some vCPUs share a core, "
                "the controller shares a core with a vCPU, CPU 0 in use"
            ),
        ),
        (
            3,
            {5},
            LAPTOP,
            None,
            "3 vCPUs do not fit on 1 allowed CPU: the storm would measure the scheduler",
        ),
    ],
)
def test_choices(
    n_vcpus: int,
    allowed: frozenset[int],
    topology: tuple[CpuPlace, ...],
    cpus: tuple[int, ...] | None,
    why: str,
) -> None:
    assert choose_cpus(n_vcpus, allowed, topology) == Pinning(
        cpus, overcommitted=cpus is None, why=why
    )


@pytest.mark.parametrize("n_vcpus", [0, -1])
def test_no_vcpus_is_a_bad_request(n_vcpus: int) -> None:
    with pytest.raises(UsageError):
        choose_cpus(n_vcpus, {0}, ())


def test_topology_from_sysfs(make_files: Make) -> None:
    cpu = "/sys/devices/system/cpu"
    contents = {
        f"{cpu}/cpu0/topology/thread_siblings_list": "0,2\n",
        f"{cpu}/cpu0/topology/core_siblings_list": "0-3\n",
        f"{cpu}/cpu0/node1/x": "",
        f"{cpu}/cpu0/cache/index0/level": "1\n",
        f"{cpu}/cpu0/cache/index0/shared_cpu_list": "0,2\n",
        f"{cpu}/cpu0/cache/index3/level": "3\n",
        f"{cpu}/cpu0/cache/index3/shared_cpu_list": "0-2\n",
        # No cache described: the package stands in for it.
        f"{cpu}/cpu1/topology/thread_siblings_list": "1\n",
        f"{cpu}/cpu1/topology/core_siblings_list": "0-3\n",
        # Offline: no topology directory.
        f"{cpu}/cpu3/online": "0\n",
        f"{cpu}/cpufreq/boost": "1\n",
    }
    assert read_topology(make_files(contents)) == (
        CpuPlace(0, frozenset({0, 2}), frozenset({0, 1, 2}), 1),
        CpuPlace(1, frozenset({1}), frozenset({0, 1, 2, 3}), None),
    )


def test_no_sysfs_no_topology(make_files: Make) -> None:
    assert read_topology(make_files({})) == ()


@given(requests())
def test_every_cpu_is_shared_by_two(ask: Request) -> None:
    n_vcpus, allowed, topology = ask
    shared = share_cpus(n_vcpus, allowed, topology)
    assert shared.overcommitted
    if n_vcpus % 2 or n_vcpus // 2 > len(allowed):
        assert shared.cpus is None
        return
    assert shared.cpus is not None
    assert len(shared.cpus) == n_vcpus
    half = n_vcpus // 2
    assert shared.cpus[:half] == shared.cpus[half:]
    assert shared.cpus[:half] == choose_cpus(half, allowed, topology).cpus


@pytest.mark.parametrize(
    ("n_vcpus", "why"),
    [
        (3, "3 vCPUs cannot be divided among CPUs with 2 vCPUs each"),
        (6, "6 vCPUs, 2 on each CPU, need 3 CPUs, and 2 are allowed"),
        (4, "2 vCPUs on each CPU"),
    ],
)
def test_why_cpus_are_shared_or_not(n_vcpus: int, why: str) -> None:
    assert share_cpus(n_vcpus, {3, 4}, ()).why == why
