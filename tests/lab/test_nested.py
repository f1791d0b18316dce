# SPDX-License-Identifier: Apache-2.0
"""The whole chain: a Debian guest under kvm_amd, driven over ssh, traced by its host.

Slow: a guest in an emulated host. `make test-lab-nested` runs it.
"""

import pyarrow.parquet as pq
import pytest
from conftest import run_lab
from lab_result import LabResult

from ipitrace.recording.reader import read_run

pytestmark = pytest.mark.lab("nested")

MSR = {"msr-exit", "msr-fastpath"}
# The exit that a send is, and the paths it may take. QEMU's KVM guests are offered the hypercall.
SENDS = {
    "unicast-running": ("msr", MSR),
    "unicast-halted": ("msr", MSR),
    "self": ("msr", MSR),
    "unicast-halted-smp-call": ("msr", MSR),
    "broadcast-pv": ("hypercall", {"pv-hypercall"}),
}
N_HOST_CPUS = 3
COUNT = 120


@pytest.fixture(scope="module")
def nested() -> LabResult:
    asked = [word for name in SENDS for word in ("--scenario", name)]
    return run_lab("nested", "--", "--count", str(COUNT), "--repeat", "2", *asked)


def test_the_run_is_whole_and_names_its_guest(nested: LabResult) -> None:
    guest = nested.run.guest
    assert nested.run.complete
    assert guest.kind == "linux"
    assert guest.vm.name == "guest1"
    assert guest.vm.vmm == "QEMU"
    assert guest.apic_mode == "x2apic"
    assert guest.module_srcversion
    assert nested.run.host.fingerprint.kvm_backend == "kvm_amd"
    assert "guest1" in (nested.output / "list.txt").read_text()


def test_a_name_is_enough_for_a_guest_with_an_agent(nested: LabResult) -> None:
    run = read_run(nested.output / "by-agent")
    assert run.complete
    assert run.guest.via == "qga"
    (row,) = run.scenarios
    assert (row.sent, row.delivered, row.unmatched_ipis) == (40, 40, 0)
    assert row.exits is not None
    assert (row.exits.sender or {})["msr"] >= 1


def test_all_was_removed_from_the_guest(nested: LabResult) -> None:
    said = (nested.output / "remove.txt").read_text()
    assert said.startswith("unloaded ipitrace_storm\nremoved /var/lib/ipitrace")


def test_the_host_measured_itself(nested: LabResult) -> None:
    """ipitrace beside the module: no host's side, and nothing left of it."""
    run = read_run(nested.output / "local")
    assert run.complete
    assert (run.guest.kind, run.guest.via, run.guest.vm) == ("linux", "local", None)
    assert [row.delivered for row in run.scenarios] == [100, 100 * (N_HOST_CPUS - 1)]
    assert all(row.exits is None or row.exits.source is None for row in run.scenarios)
    assert (nested.output / "local-remove.txt").read_text().startswith("unloaded ipitrace_storm\n")


@pytest.mark.parametrize("name", SENDS)
def test_every_ipi_arrived(nested: LabResult, name: str) -> None:
    row = nested.scenario(name)
    assert (row.status, row.sent, row.delivered) == ("measured", COUNT, COUNT)
    assert row.incomplete == 0


@pytest.mark.parametrize("name", SENDS)
def test_the_host_saw_each_send_exit(nested: LabResult, name: str) -> None:
    # Timer ticks and the like exit as well: at least, not exactly.
    reason, possible = SENDS[name]
    assert nested.exits(name, "sender", reason) >= 1
    assert nested.scenario(name).unmatched_ipis == 0
    paths = nested.scenario(name).paths
    assert paths is not None
    assert sum(paths.get(path, 0) for path in possible) > 0.99


def test_a_halted_target_exits_to_halt(nested: LabResult) -> None:
    assert nested.exits("unicast-halted", "target", "hlt") >= 0.9


def test_host_and_guest_are_on_one_clock(nested: LabResult) -> None:
    clock = nested.run.clock
    assert clock.guest_tsc_offset not in {None, 0}
    assert clock.bound_cycles is not None
    assert set(clock.causality_violations.values()) == {0}


def test_host_events_lie_between_the_guests_stamps(nested: LabResult) -> None:
    spans = pq.read_table(nested.recording / "spans.parquet").to_pydict()
    assert nested.run.clock.bound_cycles is not None
    bound = nested.run.clock.bound_cycles
    seen = 0
    for send, accept, handler in zip(
        spans["send_tsc"], spans["accept_tsc"], spans["handler_tsc"], strict=True
    ):
        if accept is not None and handler is not None:
            assert send - bound <= accept <= handler + bound
            seen += 1
    assert seen >= 0.99 * len(spans["send_tsc"])
