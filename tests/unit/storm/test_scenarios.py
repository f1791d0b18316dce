# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest

from ipitrace.base.errors import UsageError
from ipitrace.host.kvm_extensions import HYPERV_IPIS, offers
from ipitrace.storm.micro import hypercall, passthrough, preemptor
from ipitrace.storm.micro.driver import MicroGuest, unsupported
from ipitrace.storm.micro.image import MG_VECTOR_SELF, MG_VECTOR_TARGET, Payload
from ipitrace.words.scenarios import (
    DEFAULT_SCENARIOS,
    HV_METHODS,
    SCENARIOS,
    Pattern,
    Route,
    SendMethod,
    TargetState,
    routes_of,
    select_scenarios,
)


def names(*asked: str) -> list[str]:
    return [scenario.name for scenario in select_scenarios(asked)]


def test_names_are_unique_and_the_default_runs_in_the_micro_guest() -> None:
    known = [scenario.name for scenario in SCENARIOS]
    assert len(set(known)) == len(known)
    for scenario in select_scenarios(DEFAULT_SCENARIOS):
        assert unsupported(scenario) is None


def test_no_two_scenarios_are_the_same() -> None:
    kinds = {(s.pattern, s.target_state, s.send_method) for s in SCENARIOS}
    assert len(kinds) == len(SCENARIOS)


def test_every_word_of_the_model_is_in_the_table() -> None:
    assert {s.pattern for s in SCENARIOS} == set(Pattern)
    assert {s.target_state for s in SCENARIOS} == set(TargetState)
    assert {s.send_method for s in SCENARIOS} == set(SendMethod)


def test_the_order_asked_is_kept_and_each_comes_once() -> None:
    assert names("self", "broadcast", "self") == ["self", "broadcast"]
    assert names("all") == [scenario.name for scenario in SCENARIOS]
    assert names("self", "all")[0] == "self"
    assert len(names("self", "all", "broadcast")) == len(SCENARIOS)
    assert names() == []


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="'unicast-runing'") as raised:
        select_scenarios(["self", "unicast-runing"])
    assert raised.value.hint.startswith("Did you mean unicast-running? ")
    for scenario in SCENARIOS:
        assert scenario.name in raised.value.hint


def test_an_outlandish_name_suggests_nothing() -> None:
    with pytest.raises(UsageError) as raised:
        select_scenarios(["zzz"])
    assert "Did you mean" not in raised.value.hint
    assert "broadcast" in raised.value.hint


def test_what_the_micro_guest_cannot_run_has_a_reason() -> None:
    cannot = {s.name: unsupported(s) for s in SCENARIOS if unsupported(s)}
    through_descriptors = {s.name for s in SCENARIOS if s.send_method == SendMethod.PASSTHROUGH}
    if passthrough.why_unsupported() is None:
        through_descriptors = set()
    through_hyperv = {s.name for s in SCENARIOS if s.send_method in HV_METHODS}
    if offers(*HYPERV_IPIS):
        through_hyperv = set()
    preempted = {s.name for s in SCENARIOS if s.target_state == TargetState.PREEMPTED}
    if preemptor.why_not() is None:
        preempted = set()
    by_hypercall = {s.name for s in SCENARIOS if s.send_method == SendMethod.PV_HYPERCALL}
    if hypercall.why_unsupported() is None:
        by_hypercall = set()
    assert cannot.keys() == {
        "unicast-running-smp-call",
        "unicast-halted-smp-call",
        *by_hypercall,
        *through_descriptors,
        *through_hyperv,
        *preempted,
    }
    assert all("Hyper-V's hypercalls" in cannot[n] for n in through_hyperv)
    assert all("posted-interrupt descriptors for sending" in cannot[n] for n in through_descriptors)
    assert all("KVM_HC_SEND_IPI" in (cannot[n] or "") for n in by_hypercall)


def test_a_multicast_has_two_targets_at_least_and_not_all() -> None:
    named = [s for s in SCENARIOS if s.pattern == Pattern.MULTICAST]
    assert named
    for scenario in named:
        for n_vcpus in (2, 3):
            why = MicroGuest.prepare(n_vcpus, None).unsupported(scenario)
            assert why is not None
            assert "--vm micro:4" in why
        assert MicroGuest.prepare(4, None).targets(scenario) == (1, 3)
        assert MicroGuest.prepare(6, None).targets(scenario) == (1, 3, 5)
        most = 8 if scenario.send_method == SendMethod.XAPIC else 16
        assert MicroGuest.prepare(64, None).targets(scenario) == tuple(range(1, most, 2))


def test_in_a_ring_each_vcpu_sends_to_the_next() -> None:
    assert [(r.sender, r.targets) for r in routes_of(Pattern.RING, (0, 2, 3))] == [
        *((0, (2,)), (2, (3,)), (3, (0,))),
    ]
    assert routes_of(Pattern.BROADCAST, (1, 2)) == (Route(0, (1, 2)),)


def test_hypervs_set_of_all_processors_includes_the_sender() -> None:
    guest = MicroGuest(4, None, Payload(b"", 0, 0, 0, 0, 0, 0, 0))
    to_all, to_others = select_scenarios(["broadcast-self-hv-ex", "broadcast-hv"])
    assert (guest.targets(to_all), guest.targets(to_others)) == ((0, 1, 2, 3), (1, 2, 3))
    assert (guest.vector(to_all), guest.vector(to_others)) == (MG_VECTOR_SELF, MG_VECTOR_TARGET)


def test_without_kvm_it_is_unknown_what_the_host_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    offers.cache_clear()
    monkeypatch.setattr(os, "open", refused)
    why = passthrough.why_unsupported()
    assert why is not None
    assert why.startswith("it is unknown whether the host offers")
    assert why.endswith("/dev/kvm cannot be opened (Permission denied)")
