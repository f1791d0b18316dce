# SPDX-License-Identifier: Apache-2.0
"""The whole chain: a Debian guest under kvm_amd, driven over ssh, traced by its host.

Slow: a guest in an emulated host. `make test-lab-nested` runs it.
"""

import pyarrow.parquet as pq
import pytest
from conftest import run_lab
from lab_result import LabResult

pytestmark = pytest.mark.lab("nested")

SCENARIOS = ("unicast-running", "unicast-halted", "self")
COUNT = 120


@pytest.fixture(scope="module")
def nested() -> LabResult:
    asked = [word for name in SCENARIOS for word in ("--scenario", name)]
    return run_lab("nested", "--", "--count", str(COUNT), "--repeat", "2", *asked)


def test_the_run_is_whole_and_names_its_guest(nested: LabResult) -> None:
    guest = nested.run.guest
    assert nested.run.complete
    assert guest["kind"] == "linux"
    assert guest["vm"]["name"] == "guest1"
    assert guest["vm"]["vmm"] == "QEMU"
    assert guest["apic_mode"] == "x2apic"
    assert guest["module_srcversion"]
    assert nested.run.host["fingerprint"]["kvm_backend"] == "kvm_amd"
    assert "guest1" in (nested.output / "list.txt").read_text()


def test_all_was_removed_from_the_guest(nested: LabResult) -> None:
    said = (nested.output / "remove.txt").read_text()
    assert said.startswith("unloaded ipistorm\nremoved /var/lib/ipitrace")


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_ipi_arrived(nested: LabResult, name: str) -> None:
    row = nested.scenario(name)
    assert (row.status, row.sent, row.delivered) == ("measured", COUNT, COUNT)
    assert row.incomplete == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_host_saw_each_send_exit(nested: LabResult, name: str) -> None:
    # Timer ticks and the like exit as well: at least, not exactly.
    assert nested.exits(name, "sender", "msr") >= 1
    assert nested.scenario(name).unmatched_ipis == 0
    paths = nested.scenario(name).paths
    assert paths is not None
    assert paths.get("msr-exit", 0) + paths.get("msr-fastpath", 0) > 0.99


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
