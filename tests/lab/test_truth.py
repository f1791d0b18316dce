# SPDX-License-Identifier: Apache-2.0
"""The true stages of IPIs, from stamps of the emulator in a host without probes."""

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ARTIFACTS_VARIABLE, fixtures_of, run_lab
from lab_result import LabResult

from ipitrace.correlate.breakdown import Breakdown
from ipitrace.words.scenarios import DEFAULT_SCENARIOS
from ipitrace.words.stages import Stage
from lab.common.job import build_wheel
from lab.common.steps import LabError
from lab.intel.boot import STAMPS
from lab.truth.inside import sites
from lab.truth.stages import Stamp, read_stamps, stages_of
from lab.truth.truth import Truth, read_truth, write_truth

RUNNING, HALTED, SELF, BROADCAST = "unicast-running", "unicast-halted", "self", "broadcast"
TABLE = 0xFFFFFFFF82000000
SENDER_CPU, TARGET_CPU = 1, 0
CPUS = (SENDER_CPU, TARGET_CPU)


def entry(offset: int, code: int, key: int, flags: int = 0) -> bytes:
    """A struct jump_entry at TABLE + offset."""
    at = TABLE + offset
    return struct.pack("<iiq", code - at, 0, (key - (at + 8)) | flags)


def test_a_jump_table_gives_the_code_and_key_of_each_site() -> None:
    code, key = 0xFFFFFFFF81234567, 0xFFFFFFFFC0001238
    table = entry(0, code, key) + entry(16, code + 8, key, flags=1)
    assert list(sites(table, TABLE)) == [(code, key), (code + 8, key)]


def test_freed_code_and_padding_are_no_sites() -> None:
    table = entry(0, 0xFFFFFFFF81234567, 0xFFFFFFFFC0001238, flags=2) + bytes(16)
    assert list(sites(table, TABLE)) == []


def test_stamps_are_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / STAMPS
    file.write_text("stamp 100 1 7\nstamp 100 0 8\n")
    names = {7: "kvm_exit", 8: "kvm_entry"}
    assert read_stamps(file, names) == [Stamp(100, 1, "kvm_exit"), Stamp(100, 0, "kvm_entry")]


@pytest.mark.parametrize(
    "line", ["stamp 1 0", "stamp 1 0 9", "stamp 1 0 x", "refused place x", "refused 1 0 7", ""]
)
def test_anything_else_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / STAMPS
    file.write_text(f"{line}\n")
    with pytest.raises(LabError, match="not a stamp"):
        read_stamps(file, {7: "kvm_exit"})


def test_cpus_whose_clocks_differ_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / STAMPS
    file.write_text("stamp 100 1 7\nstamp 99 0 7\n")
    with pytest.raises(LabError, match="TSCs of the emulated CPUs differ"):
        read_stamps(file, {7: "kvm_exit"})


def ipi(**changed: int | None) -> Mapping[str, int | None]:
    guest = {"send_tsc": 1000, "sent_tsc": 1900, "handler_tsc": 1500, "eoi_tsc": 1510}
    return {**guest, "ack_tsc": 1950, "target": 1, **changed}


ON_THE_WAY: Sequence[Stamp] = (
    Stamp(900, SENDER_CPU, "kvm_exit"),  # before the send
    Stamp(1010, SENDER_CPU, "kvm_exit"),  # the timer's
    Stamp(1020, SENDER_CPU, "kvm_entry"),
    Stamp(1030, SENDER_CPU, "kvm_exit"),
    Stamp(1040, TARGET_CPU, "kvm_exit"),  # its HLT
    Stamp(1100, SENDER_CPU, "kvm_apic_ipi"),
    Stamp(1200, SENDER_CPU, "kvm_apic_accept_irq"),
    Stamp(1210, TARGET_CPU, "sched_switch"),
    Stamp(1220, TARGET_CPU, "kvm_vcpu_wakeup"),
    Stamp(1250, SENDER_CPU, "kvm_apicv_accept_irq"),
    Stamp(1260, TARGET_CPU, "kvm_entry"),
    Stamp(1270, TARGET_CPU, "kvm_exit"),
    Stamp(1280, TARGET_CPU, "kvm_entry"),
    Stamp(1300, SENDER_CPU, "kvm_msr"),
    Stamp(1400, SENDER_CPU, "kvm_entry"),
    Stamp(1600, SENDER_CPU, "kvm_exit"),
    Stamp(1610, SENDER_CPU, "kvm_msr"),  # of a later exit
    Stamp(1620, TARGET_CPU, "kvm_entry"),
)
GUEST = {Stage.SEND: 1000, Stage.SENT: 1900, Stage.HANDLER: 1500, Stage.EOI: 1510, Stage.ACK: 1950}


def test_each_stage_is_a_stamp_on_its_side_and_in_its_interval() -> None:
    assert stages_of(ipi(), 2000, ON_THE_WAY, CPUS) == {
        **GUEST,
        Stage.SENDER_EXIT: 1030,
        Stage.IPI: 1100,
        Stage.ACCEPT: 1200,
        Stage.APICV_ACCEPT: 1250,
        Stage.ICR_WRITE: 1300,
        Stage.SENDER_ENTRY: 1400,
        Stage.SCHED_IN: 1210,
        Stage.WAKEUP: 1220,
        Stage.TARGET_EXIT: 1270,
        Stage.TARGET_ENTRY: 1280,
    }


def test_an_ipi_to_itself_has_no_target_stages() -> None:
    found = stages_of(ipi(target=0), 2000, ON_THE_WAY, CPUS)
    assert Stage.SCHED_IN not in found
    assert found[Stage.IPI] == 1100


def test_without_a_handler_there_is_no_way_to_it() -> None:
    found = stages_of(ipi(handler_tsc=None, eoi_tsc=None), 2000, ON_THE_WAY, CPUS)
    assert Stage.TARGET_ENTRY not in found
    assert Stage.HANDLER not in found
