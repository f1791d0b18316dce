# SPDX-License-Identifier: Apache-2.0
"""Which vCPU is which guest CPU, and what a guest can do; storms themselves: tests/guest."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from strategies import Truth, truths
from test_storm_file import storm_file

from ipitrace.base.errors import HostError, UsageError
from ipitrace.measure.guests import _elsewhere
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.linux.helper import GuestCpus, HelperStatus, Module, read_cpus, read_status
from ipitrace.storm.transport.local import LocalShell
from ipitrace.storm.transport.shell import Finished
from ipitrace.summary.storms import cycles_of
from ipitrace.vm import Vcpu, VirtualMachine
from ipitrace.vm.confidential import Confidential
from ipitrace.words.scenarios import SCENARIOS, Route, SendMethod, select_scenarios

STATUS = HelperStatus(
    abi_version=2,
    helper_version="1.0",
    module=Module(loaded=True, version="1.0", srcversion="ABC"),
    kernel="6.12",
    n_cpus=3,
    online=(0, 1, 2),
    apic_mode="x2apic",
    tsc_khz=2_000_000,
    unsupported={
        "xapic": "the APICs are in x2APIC mode",
        "passthrough": "the guest's kernel does not use Passthrough IPI",
    },
)


def machine(*vcpus: Vcpu) -> VirtualMachine:
    return VirtualMachine(
        pid=1,
        name="guest1",
        aliases=("guest1", "pid:1"),
        vmm="QEMU",
        vcpus=vcpus,
        memory_bytes=None,
        started_at_ticks=1,
        apic_mode=None,
        backend=None,
        vm_fd=10,
        creator_tid=1,
        unknown={"tid": "nobody saw it"},
    )


def guest(vm: VirtualMachine | None, apic_ids: tuple[int, ...] | None) -> LinuxGuest:
    cpus = GuestCpus(apic_ids, native=False, emulated=None)
    return LinuxGuest(LocalShell(), "/ipitrace-storm", STATUS, vm, cpus)


SPREAD = machine(Vcpu(0, 100, (0,)), Vcpu(2, 102, (1,)), Vcpu(4, 104, (2,)))


def test_a_guests_cpu_is_the_vcpu_with_its_apic_id() -> None:
    ours = guest(SPREAD, (0, 4, 2))
    assert ours.tids() == (100, 104, 102)
    assert ours.pinned_cpus == (0, 2, 1)
    assert ours.apic_ids == (0, 4, 2)


def test_an_apic_id_that_the_vm_lacks_is_another_machines() -> None:
    with pytest.raises(HostError, match="CPU 1 has APIC id 1") as raised:
        guest(SPREAD, (0, 1, 2)).tids()
    assert "same machine" in raised.value.hint


def test_without_apic_ids_the_numbers_are_taken() -> None:
    dense = machine(*(Vcpu(i, 100 + i, (0, 1)) for i in range(3)))
    ours = guest(dense, None)
    assert ours.tids() == (100, 101, 102)
    assert ours.apic_ids is None
    assert ours.pinned_cpus is None


def test_a_thread_that_is_not_known_is_told() -> None:
    vm = machine(Vcpu(0, 100, (0,)), Vcpu(1, None, ()), Vcpu(2, 102, (1,)))
    with pytest.raises(HostError, match="vCPU 1 is unknown: nobody saw it"):
        guest(vm, (0, 1, 2)).tids()


def test_what_the_helper_refuses_is_not_run() -> None:
    ours = guest(None, (0, 1, 2))
    for scenario in SCENARIOS:
        reason = ours.unsupported(scenario)
        if scenario.send_method == SendMethod.XAPIC:
            assert reason == "the APICs are in x2APIC mode"
        if scenario.send_method == SendMethod.PASSTHROUGH:
            assert reason is not None
    refused = {s.name for s in SCENARIOS if ours.unsupported(s)}
    assert not refused & {"unicast-running", "unicast-blocked", "broadcast", "broadcast-pv", "ring"}
    assert {"unicast-preempted", "unicast-running-passthrough", "multicast-running"} <= refused


def test_targets_are_the_cpus_that_are_online() -> None:
    ours = replace(guest(None, None), status=replace(STATUS, online=(0, 1), n_cpus=3))
    broadcast, one, myself, ring = select_scenarios(
        ["broadcast", "unicast-running", "self", "ring"]
    )
    assert ours.targets(broadcast) == (1,)
    assert ours.targets(one) == (1,)
    assert ours.targets(myself) == (0,)
    assert ours.targets(ring) == (0, 1)


def test_this_machines_cpus_are_read() -> None:
    found = read_cpus(LocalShell(), 1)
    assert found.apic_ids is not None
    assert len(found.apic_ids) == 1
    assert read_cpus(LocalShell(), 100_000).apic_ids is None


@pytest.mark.parametrize("helper", ["true", "false", "no-such-helper"])
def test_a_helper_that_is_none(helper: str) -> None:
    with pytest.raises(HostError):
        read_status(LocalShell(), helper)


class Guests:
    """A guest that prints this /proc/cpuinfo, and is or is not a SEV-SNP guest."""

    via = "none"

    def __init__(self, flags: str, *, snp: bool = False) -> None:
        self._cpuinfo = f"processor : 0\nflags : fpu hypervisor {flags}\napicid : 0\n".encode()
        self._snp = snp

    def run(self, command: Sequence[str], **_more: object) -> Finished:
        if command == ["cat", "/proc/cpuinfo"]:
            return Finished(0, self._cpuinfo, "")
        assert command == ["cat", "/sys/devices/system/cpu/sev/vmpl"]
        return Finished(0, b"0\n", "") if self._snp else Finished(1, b"", "No such file")


@pytest.mark.parametrize(
    ("shell", "why"),
    [
        (Guests("tsc_known_freq"), None),
        (Guests("tsc_known_freq", snp=True), None),  # a SEV-SNP guest whose host decides its TSC
        (Guests("tsc_reliable"), None),
        (Guests("tsc_reliable", snp=True), "SEV-SNP guest with Secure TSC"),
        (Guests("tdx_guest tsc_reliable"), "TDX guest"),
    ],
)
def test_a_guests_own_kernel_shows_a_protected_tsc(shell: Guests, why: str | None) -> None:
    found = read_cpus(shell, 1).protected_tsc
    assert (found is None) == (why is None)
    assert (why or "") in (found or "")


TDX, SECURE = Confidential("TDX", protected_tsc=True), Confidential("SEV-SNP", protected_tsc=True)


@pytest.mark.parametrize(
    ("cpus", "vm", "why"),
    [
        (None, TDX, "the VM's command line makes it a TDX guest, so its host"),
        (None, SECURE, "makes it a SEV-SNP guest with Secure TSC, so its host"),
        ("its kernel shows X", None, "its kernel shows X, so its host does not decide its TSC"),
        (None, Confidential("SEV-SNP", protected_tsc=False), "debugfs"),
        (None, None, "debugfs"),
    ],
)
@given(truth=truths(min_size=2))
def test_a_protected_tsc_is_not_put_together_with_the_hosts(
    cpus: str | None, vm: Confidential | None, why: str, truth: Truth
) -> None:
    """The storm runs, its stamps are there, and so is the reason. Not seen running: made up."""
    here = replace(SPREAD, confidential=vm, creator_tid=-1)
    ours = guest(here, (0, 2, 4))
    shell = GivesStorm(storm_file(truth))
    ours = replace(ours, shell=shell, cpus=replace(ours.cpus, protected_tsc=cpus))
    (unicast,) = select_scenarios(["unicast-running"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ipitrace.storm.linux.driver.still_there", lambda _vm: None)
        storm = ours.run(StormRequest(unicast, 3, len(truth.sends), 0, 60_000), Hooks())
    assert storm.tsc_offset is None
    assert why in (storm.no_tsc or "")
    assert cycles_of(storm, [Route(0, (1,))]).deliver.tolist() == list(truth.deliver)
    assert _elsewhere(ours, "guest1", here).shares_tsc == ("debugfs" in why)


class GivesStorm:
    """A guest whose storm gives these records."""

    via = "none"

    def __init__(self, records: bytes) -> None:
        self._records = records

    def run(self, command: Sequence[str], **_more: object) -> Finished:
        assert command[1] == "run"
        return Finished(0, self._records, "")


class Silent:
    """A way into a guest that must not be used."""

    via = "none"

    def run(self, command: Sequence[str], **_more: object) -> Finished:
        raise AssertionError(command)


def test_more_records_than_may_come_are_refused_before_the_storm() -> None:
    many = replace(STATUS, n_cpus=64, online=tuple(range(64)))
    ours = replace(guest(None, None), shell=Silent(), status=many)
    (broadcast,) = select_scenarios(["broadcast"])
    request = StormRequest(broadcast, 64, 250_000, 100, 60_000)
    with pytest.raises(UsageError, match=r"records of 250100 IPIs to 63 CPUs take 368 MiB"):
        ours.run(request, Hooks())
