# SPDX-License-Identifier: Apache-2.0
"""Sends with several targets, by logical ids and by several senders, on both emulated hosts."""

import pyarrow.parquet as pq
import pytest
from lab_result import GROUP_SCENARIOS, GROUP_VCPUS, LabResult

BY_HYPERCALL = ("broadcast-pv", "multicast-pv")
TARGETS = {
    "broadcast": 3,
    "unicast-logical": 1,
    "unicast-logical-xapic": 1,
    "multicast-running": 2,
    "multicast-xapic": 2,
    "broadcast-self": 4,
    "broadcast-self-xapic": 4,
    "broadcast-pv": 3,
    "multicast-pv": 2,
    "ring": 1,
}
HOSTS = [
    pytest.param("amd", marks=pytest.mark.lab("amd")),
    pytest.param("intel", marks=pytest.mark.lab("intel")),
]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def groups(host: str, request: pytest.FixtureRequest) -> LabResult:
    result = request.getfixturevalue(host)
    assert isinstance(result, LabResult)
    return result.second


def test_all_are_measured(groups: LabResult) -> None:
    assert groups.run.complete
    assert {s.name: s.status for s in groups.run.scenarios} == dict.fromkeys(
        GROUP_SCENARIOS, "measured"
    )
    assert groups.run.losses.incomplete_ipis == 0


@pytest.mark.parametrize("name", GROUP_SCENARIOS)
def test_every_target_handles_every_send(groups: LabResult, name: str) -> None:
    row = groups.scenario(name)
    senders = GROUP_VCPUS if name == "ring" else 1
    assert (row.targets, row.sent) == (TARGETS[name], 20 * senders)
    assert row.delivered == row.sent * row.targets
    assert row.unmatched_ipis == 0
    rows = pq.read_table(groups.recording / "guest_ipis.parquet").to_pylist()
    pairs = [(r["sender"], r["target"]) for r in rows if r["scenario"] == name]
    assert all(r["handler_tsc"] is not None for r in rows if r["scenario"] == name)
    assert len(set(pairs)) == senders * TARGETS[name]
    if name == "ring":
        assert set(pairs) == {(v, (v + 1) % GROUP_VCPUS) for v in range(GROUP_VCPUS)}


@pytest.mark.parametrize("name", GROUP_SCENARIOS)
def test_kvm_accepts_one_interrupt_for_each_target(groups: LabResult, name: str) -> None:
    accepted = groups.events(name, "kvm_apic_accept_irq").sender
    assert accepted == pytest.approx(TARGETS[name], abs=0.1)


@pytest.mark.parametrize("name", GROUP_SCENARIOS)
def test_paths_are_proved(groups: LabResult, host: str, name: str) -> None:
    paths = groups.scenario(name).paths
    assert paths is not None
    if name in BY_HYPERCALL:
        expected = {"pv-hypercall"}
    elif name.endswith("xapic"):
        expected = {"mmio"} if host == "amd" else {"apic-write"}
    else:
        expected = {"msr-exit", "msr-fastpath"}
    assert set(paths) <= expected
    assert sum(paths.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", BY_HYPERCALL)
def test_one_hypercall_reaches_all_targets(groups: LabResult, host: str, name: str) -> None:
    reason = "hypercall" if host == "amd" else "VMCALL"
    assert groups.exits(name, "sender", reason) == pytest.approx(1, abs=0.05)
    assert groups.events(name, "kvm_hypercall").sender == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", [name for name, n in TARGETS.items() if n > 1])
def test_the_last_target_is_not_before_the_others(groups: LabResult, name: str) -> None:
    row = groups.scenario(name)
    assert row.last_deliver_cycles is not None
    assert row.deliver_cycles is not None
    assert row.vcpus is not None
    assert row.last_deliver_cycles.count == row.sent
    assert row.last_deliver_cycles.max == row.deliver_cycles.max
    of_targets = [own.deliver_cycles for own in row.vcpus if own.deliver_cycles is not None]
    assert len(of_targets) == row.targets
    assert row.last_deliver_cycles.p50 >= max(own.p50 for own in of_targets)
