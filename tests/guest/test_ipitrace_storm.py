# SPDX-License-Identifier: Apache-2.0
"""The module in a Linux guest under QEMU's TCG: every scenario, every refusal, every way to end.

Emulated CPUs share two real ones with whatever else runs: nothing here judges a duration.
"""

import re
from itertools import product

import numpy as np
import pytest
from guest_result import GuestResult, Records

from ipitrace.abi.storm import (
    ABI_VERSION,
    ALL_BUT_SELF,
    FILE,
    FILE_MAGIC,
    StormPattern,
    StormSendMethod,
    StormState,
)
from ipitrace.senders.model import Method
from ipitrace.senders.reading import read_senders

pytestmark = pytest.mark.guest

WARMUP, COUNT = 5, 60
TOTAL = WARMUP + COUNT
PATTERNS = ("unicast", "self", "broadcast", "ring")
STATES = ("running", "running-kernel", "halted")
METHODS = ("x2apic", "xapic", "smp-call", "pv-hypercall", "passthrough")
PLATFORM_IPI, CALL_FUNCTION, CALL_FUNCTION_SINGLE = 0xF7, 0xFC, 0xFB  # asm/irq_vectors.h
AS_ASKED = 0.8  # of all handler entries; the rest hit a tick, or another task's turn


def refused(guest: GuestResult, pattern: str, state: str, method: str) -> str | None:
    """A word of the reason why a scenario cannot be run in this guest."""
    apic = "x2apic" if guest.guest.x2apic else "xapic"
    if pattern in {"self", "ring"} and state == "halted":
        return "cannot be in HLT"
    if method in {"x2apic", "xapic"} - {apic}:
        return "the APICs are in"
    if method == "smp-call" and pattern == "self":
        return "without an IPI"
    return {"pv-hypercall": "KVM_HC_SEND_IPI", "passthrough": "Passthrough IPI"}.get(method)


def handlers_of(pattern: str, n_cpus: int) -> list[int]:
    """How many IPIs each CPU handles, of TOTAL sends from CPU 0 to CPU 1."""
    handled = {
        "unicast": [0, TOTAL],
        "self": [TOTAL],
        "broadcast": [0] + [TOTAL] * (n_cpus - 1),
        "ring": [TOTAL] * n_cpus,
    }
    return handled[pattern]


def check_records(records: Records, n_cpus: int, pattern: str, *, sender: int = 0) -> None:
    sends, receipts = records.sends, records.receipts
    senders = list(range(n_cpus)) if pattern == "ring" else [sender]
    assert sends["sender"].tolist() == [s for s in senders for _ in range(TOTAL)]
    assert sends["seq"].tolist() == list(range(TOTAL)) * len(senders)
    assert (sends["send_tsc"] < sends["sent_tsc"]).all()
    for one in senders:
        own = sends[sends["sender"] == one]
        acknowledged = own["ack_tsc"] != 0
        assert (own["ack_tsc"][acknowledged] > own["send_tsc"][acknowledged]).all()
        if pattern != "self":  # there the handler ends before the second stamp
            handled_on = {int(own["target"][0])} - {ALL_BUT_SELF} or set(range(n_cpus)) - {one}
        else:
            handled_on = {one}
        for cpu in handled_on:
            log = receipts[cpu]
            assert (log["handler_tsc"] > own["send_tsc"]).all(), (pattern, cpu)
            assert (log["handler_tsc"] < own["ack_tsc"]).all(), (pattern, cpu)
        assert (own["send_tsc"][1:] > own["ack_tsc"][:-1]).all()
    for log in receipts:
        assert log["seq"].tolist() == list(range(len(log)))
        assert (np.diff(log["handler_tsc"].astype(np.int64)) > 0).all()
        assert (log["eoi_tsc"] == 0).all()


def test_the_module_loads_and_says_where_it_is(guest: GuestResult) -> None:
    assert guest.exit_code("insmod") == 0
    assert guest.text("mode.out") == "600\n"
    status = guest.status
    assert guest.text("status.out").count("\n") == 1
    assert status["abi_version"] == ABI_VERSION
    assert status["module"]["loaded"] is True
    assert status["module"]["version"] == status["helper_version"]
    assert re.fullmatch(r"[0-9A-F]{20,}", status["module"]["srcversion"])
    assert status["n_cpus"] == guest.guest.cpus
    assert status["online"] == list(range(guest.guest.cpus))
    assert status["apic_mode"] == ("x2apic" if guest.guest.x2apic else "xapic")
    assert status["tsc_khz"] > 0
    other = "xapic" if guest.guest.x2apic else "x2apic"
    assert set(status["unsupported"]) == {other, "pv-hypercall", "passthrough"}


@pytest.mark.parametrize(("pattern", "state", "method"), [*product(PATTERNS, STATES, METHODS)])
def test_every_scenario(guest: GuestResult, pattern: str, state: str, method: str) -> None:
    """Runs and loses nothing, or is refused with the reason."""
    name = f"run-{pattern}-{state}-{method}"
    reason = refused(guest, pattern, state, method)
    if reason is not None:
        assert guest.exit_code(name) == 3
        assert reason in guest.error(name)
        return
    n_cpus = guest.guest.cpus
    records = guest.records(name)
    header, status = records.header, records.header["status"]
    assert header["magic"] == FILE_MAGIC
    assert (header["abi_version"], header["header_bytes"]) == (ABI_VERSION, FILE.itemsize)
    assert header["tsc_khz"] == guest.status["tsc_khz"]
    assert header["params"]["pattern"] == StormPattern[pattern.upper()]
    assert header["params"]["send_method"] == StormSendMethod[method.upper().replace("-", "_")]
    many = pattern == "broadcast" and n_cpus > 2
    by_call = CALL_FUNCTION if many else CALL_FUNCTION_SINGLE
    assert header["vector"] == (by_call if method == "smp-call" else PLATFORM_IPI)
    assert [len(log) for log in records.receipts] == handlers_of(pattern, n_cpus)
    assert status["state"] == StormState.DONE
    assert (status["incomplete"], status["spurious"]) == (0, 0)
    assert status["sent"] == len(records.sends)
    assert 0 < status["as_asked"] <= sum(map(len, records.receipts))
    check_records(records, n_cpus, pattern)


def test_targets_are_nearly_always_in_the_state_asked_for(guest: GuestResult) -> None:
    """Over all scenarios: a single one may share its CPUs with whatever the guest does."""
    ran = [name for s in guest.output.glob("run-*.status") if not guest.exit_code(name := s.stem)]
    records = [guest.records(name) for name in ran]
    entries = sum(len(log) for one in records for log in one.receipts)
    assert sum(int(r.header["status"]["as_asked"]) for r in records) >= AS_ASKED * entries


def test_a_sender_other_than_the_first_cpu(guest: GuestResult) -> None:
    records = guest.records("from-1")
    assert [len(log) for log in records.receipts] == [TOTAL, 0]
    check_records(records, guest.guest.cpus, "unicast", sender=1)


def test_a_blocked_target_is_a_halted_one_at_a_long_pace(guest: GuestResult) -> None:
    sends = guest.records("blocked").sends
    pauses = sends["send_tsc"][1:] - sends["ack_tsc"][:-1]
    assert (pauses >= guest.status["tsc_khz"] * 10).all()


def test_a_burning_handler_shows_in_the_round_trip(guest: GuestResult) -> None:
    records = guest.records("burnt")
    after_handler = records.sends["ack_tsc"] - records.receipts[1]["handler_tsc"]
    assert (after_handler >= 1_000_000).all()


def test_a_lost_ipi_is_missed_and_the_others_are_not(guest: GuestResult) -> None:
    records = guest.records("lost")
    lost = records.sends[records.sends["ack_tsc"] == 0]
    assert lost["seq"].tolist() == [WARMUP + COUNT // 2]
    assert len(records.receipts[1]) == TOTAL - 1
    assert records.header["status"]["incomplete"] == 1


def test_too_many_lost_ipis_end_the_storm(guest: GuestResult) -> None:
    assert guest.exit_code("gave-up") == 4
    assert guest.error("gave-up").startswith("gave up: 1 of 36 IPIs were not acknowledged")


def test_the_kernel_counts_the_calls(guest: GuestResult) -> None:
    """smp-call arrives as the kernel's own function call interrupts."""
    before, after = (int(guest.text(f"cal-{when}").split()[1 + 1]) for when in ("before", "after"))
    assert len(guest.records("called").receipts[1]) == TOTAL
    assert after - before >= TOTAL


def test_the_kernel_counts_the_calls_of_a_storm_by_sender(guest: GuestResult) -> None:
    """In busybox' shell. Each call is queued for one CPU."""
    assert guest.exit_code("senders") == 0
    senders = read_senders((guest.output / "senders.out").read_bytes())
    assert guest.text("senders.left") == ""
    *_, queued = senders.sources
    if guest.guest.suite in {"bullseye", "bookworm"}:  # Linux 5.10 and 6.1
        assert [source.method for source in senders.sources] == [None, None, None]
        return
    assert len(guest.records("counted").receipts[1]) == TOTAL
    assert queued.method is Method.HISTOGRAM
    handler = "receive_smp_call [ipitrace_storm]"
    ours = [sender for sender in queued.senders if sender.callback == handler]
    assert [sender.count for sender in ours] == [TOTAL]


def test_the_kernel_sees_an_interrupt_for_each_receipt(guest: GuestResult) -> None:
    """On the target's CPU, on our vector; our handler is inside it."""
    records = guest.records("traced")
    seen = re.findall(
        r"\[(\d+)\] .* x86_platform_ipi_(entry|exit): vector=(\d+)", guest.text("trace")
    )
    assert [(cpu, side) for cpu, side, _ in seen] == [("001", "entry"), ("001", "exit")] * TOTAL
    assert {int(vector) for *_, vector in seen} == {PLATFORM_IPI}
    assert len(records.receipts[1]) == TOTAL


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("bad-count", 2, "count must be"),
        ("bad-many", 2, "count must be"),
        ("bad-overflow", 2, "count must be"),
        ("bad-pace", 2, "take more than 600 s"),
        ("bad-timeout", 2, "timeout must be"),
        ("bad-long-timeout", 2, "timeout must be"),
        ("bad-burn", 2, "burn"),
        ("bad-incomplete", 2, "max_incomplete"),
        ("bad-self", 2, "both CPU 0"),
        ("bad-cpu", 2, "target: there is no CPU 4000"),
        ("bad-sender", 2, "sender: there is no CPU 4000"),
        ("bad-number", 2, "is not a number"),
        ("bad-option", 2, "there is no asleep"),
        ("no-memory", 3, "half of the memory"),
        ("user", 3, "Operation not permitted"),
        ("user-mode", 3, "Permission denied"),
        ("second", 3, "another storm is running"),
        ("offline-target", 3, "target: CPU 1 is offline"),
        ("offline-sender", 3, "sender: CPU 1 is offline"),
        ("no-module", 3, "is the module loaded?"),
    ],
)
def test_what_cannot_be_is_refused(guest: GuestResult, name: str, code: int, reason: str) -> None:
    assert reason in guest.error(name)
    assert guest.exit_code(name) == code


def test_a_shorthand_that_would_reach_offline_cpus_is_refused(guest: GuestResult) -> None:
    assert guest.exit_code("offline-broadcast") == 3
    # Two CPUs without one are no broadcast at all.
    expected = "some CPUs are offline" if guest.guest.cpus > 2 else "only one CPU is online"
    assert expected in guest.error("offline-broadcast")


def test_a_check_says_nothing_and_runs_nothing(guest: GuestResult) -> None:
    assert guest.exit_code("check") == 0
    assert (guest.text("check.out"), guest.text("check.err")) == ("", "")


def test_the_module_stays_while_it_runs(guest: GuestResult) -> None:
    assert guest.text("killed.workers").count("ipitrace/") == 2
    assert guest.exit_code("rmmod-running") != 0


def test_killing_the_helper_ends_the_storm(guest: GuestResult) -> None:
    assert guest.exit_code("killed") == 128 + 9
    assert guest.exit_code("terminated") == 128 + 15
    assert guest.text("left-over") == ""
    assert len(guest.records("after-kill").sends) == TOTAL


@pytest.mark.parametrize("state", STATES)
def test_a_target_that_goes_offline_ends_the_storm(guest: GuestResult, state: str) -> None:
    assert guest.text(f"offline-{state}.cpu1") == "0\n"
    assert guest.exit_code(f"offline-{state}") == 4
    assert guest.error(f"offline-{state}") == "CPU 1 went offline during the storm"


def test_a_ring_ends_when_one_of_it_goes_offline(guest: GuestResult) -> None:
    assert guest.text("offline-ring.workers").count("ipitrace/") == guest.guest.cpus
    assert guest.exit_code("offline-ring") == 4
    assert guest.error("offline-ring") == "CPU 1 went offline during the storm"
    assert len(guest.records("after-offline").sends) == TOTAL


def test_unloading_leaves_nothing(guest: GuestResult) -> None:
    assert guest.exit_code("rmmod") == 0
    assert guest.text("unloaded") == ""
    assert '"loaded": false' in guest.text("status-unloaded.out")
    assert guest.exit_code("insmod-again") == 0
    assert len(guest.records("again").sends) == TOTAL
    assert guest.exit_code("rmmod-again") == 0


def test_the_kernel_has_nothing_to_complain_about(guest: GuestResult) -> None:
    said = guest.text("dmesg.txt")
    assert "ipitrace_storm: loading out-of-tree module" in said
    complaints = re.compile(r"WARNING:|BUG:|Oops|Call Trace|stall|lockup|hung task|refcount")
    assert not [line for line in said.splitlines() if complaints.search(line)]
    ours = [line for line in said.splitlines() if "ipitrace" in line]
    kernels_own = "out-of-tree|signature|no longer affine"  # a target's user task lost its CPU
    assert all(re.search(kernels_own, line) for line in ours), ours
