# SPDX-License-Identifier: Apache-2.0
"""The true stages of IPIs, from stamps of the emulator in a host without probes."""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import fixtures_of, run_lab
from lab_result import LabResult

from ipitrace.words.scenarios import DEFAULT_SCENARIOS
from ipitrace.words.stages import Stage
from lab.common.job import build_wheel
from lab.common.steps import LabError
from lab.intel.boot import STAMPS
from lab.truth.inside import UnfitError, address_of, sites
from lab.truth.stages import Stamp, read_stamps, stages_of
from lab.truth.truth import Truth, read_truth
from lab.truth.verdict import compare

RUNNING, HALTED, SELF, BROADCAST = "unicast-running", "unicast-halted", "self", "broadcast"
TABLE = 0xFFFFFFFF82000000
SENDER_CPU, TARGET_CPU = 1, 0
CPUS = (SENDER_CPU, TARGET_CPU)
SENDERS_STEPS = (Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT)
POSTED = (Stage.APICV_ACCEPT, Stage.ICR_WRITE, Stage.SENDER_ENTRY, Stage.SENT)
SENDERS_STAGES = (Stage.SEND, *SENDERS_STEPS, *POSTED)
WAKE_UP = (Stage.ACCEPT, Stage.WAKEUP, Stage.TARGET_ENTRY, Stage.HANDLER)
HELD, HOLD_TICKS = "__apic_accept_irq", 500
HOLDS = {
    Stage.SENDER_EXIT: ("kvm_load_host_xsave_state", 400),  # of vmx_vcpu_run(), before kvm_exit
    Stage.ACCEPT: (HELD, HOLD_TICKS),  # calls kvm_apic_accept_irq
    Stage.HANDLER: ("vmx_deliver_interrupt", 300),  # posts the interrupt, after it
}
NO_POLLING = ("--parameter", "kvm.halt_poll_ns=0")
TURN_TICKS = 16  # of a CPU, before it is the other's: quantum in bochsrc


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


SYMBOLS = (
    "ffffffff81000000 T _text\nffffffff82000010 d twice\n"
    "ffffffffc0001230 D __tracepoint_kvm_exit\t[kvm]\nffffffffc0001240 d twice\t[kvm]\n"
)


@pytest.mark.parametrize(
    ("name", "address"),
    [("_text", 0xFFFFFFFF81000000), ("__tracepoint_kvm_exit", 0xFFFFFFFFC0001230)],
)
def test_a_symbol_is_the_kernels_or_a_modules(name: str, address: int) -> None:
    assert address_of(SYMBOLS, name) == address


@pytest.mark.parametrize(("name", "n"), [("twice", 2), ("kvm_exit", 0), ("text", 0)])
def test_a_symbol_that_is_not_there_once_is_an_error(name: str, n: int) -> None:
    with pytest.raises(UnfitError, match=f"the kernel has {n} symbols {name}, not one"):
        address_of(SYMBOLS, name)


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


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[LabResult]]]:
    """The boots that the chosen tests ask for, by the name of their fixture."""
    wheel = ("--wheel", str(build_wheel(tmp_path_factory.mktemp("wheel"))), "--count", "60")
    options: Mapping[str, Sequence[str]] = {
        "stamped": (),
        "unstamped": ("--unstamped",),
        "held": ("--hold", f"{HELD}={HOLD_TICKS}"),
        "traced": ("--traced", *NO_POLLING),
        "held_traced": (
            *("--traced", *NO_POLLING),
            *(word for name, ticks in HOLDS.values() for word in ("--hold", f"{name}={ticks}")),
            *(word for name in (RUNNING, BROADCAST) for word in ("--scenario", name)),
        ),
    }
    chosen = {name for item in request.session.items for name in fixtures_of(item)}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            name: pool.submit(run_lab, "truth", *wheel, *more, name=f"truth-{name}")
            for name, more in options.items()
            if name in chosen
        }


@pytest.fixture(scope="session")
def stamped(runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """An untraced run with stamps."""
    return runs["stamped"].result()


@pytest.fixture(scope="session")
def unstamped(runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """The same without stamps."""
    return runs["unstamped"].result()


@pytest.fixture(scope="session")
def held(runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """The same with stamps, and HELD takes HOLD_TICKS longer."""
    return runs["held"].result()


@pytest.fixture(scope="session")
def traced(runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """A traced run with stamps, on a host that does not poll for halted vCPUs."""
    return runs["traced"].result()


@pytest.fixture(scope="session")
def held_traced(runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """The same, with all of HOLDS."""
    return runs["held_traced"].result()


def truth_of(result: LabResult) -> Truth:
    output = result.output
    return read_truth(result.recording, output / STAMPS, output / "places.json")


@pytest.mark.lab("truth")
def test_stamps_weigh_nothing(stamped: LabResult, unstamped: LabResult) -> None:
    """Every tick of the host and of the guest is the same: console, recording, tables."""
    only_stamped = {STAMPS, "truth.json", "truth.parquet"}
    files = {file.relative_to(stamped.output) for file in stamped.output.rglob("*")}
    without = {file.relative_to(unstamped.output) for file in unstamped.output.rglob("*")}
    assert {str(file) for file in files - without} == only_stamped
    assert without <= files
    assert Path("recording/guest_ipis.parquet") in without
    for file in without:
        if (stamped.output / file).is_file():
            assert (stamped.output / file).read_bytes() == (unstamped.output / file).read_bytes()


@pytest.mark.lab("truth")
@pytest.mark.parametrize("name", [RUNNING, HALTED, BROADCAST])
def test_each_ipi_has_the_senders_stages_in_their_order(stamped: LabResult, name: str) -> None:
    ipis = [ipi.stamps for ipi in truth_of(stamped).ipis if ipi.scenario == name]
    assert len(ipis) == 60
    for stamps in ipis:
        in_order = [stamps[stage] for stage in SENDERS_STAGES]
        assert in_order == sorted(in_order)
        assert stamps[Stage.ACCEPT] < stamps[Stage.HANDLER] < stamps[Stage.ACK]


@pytest.mark.lab("truth")
def test_a_halted_target_wakes_up_and_enters(stamped: LabResult) -> None:
    for ipi in truth_of(stamped).ipis:
        if ipi.scenario == HALTED:
            way = [ipi.stamps[stage] for stage in WAKE_UP]
            assert way == sorted(way)


@pytest.mark.lab("truth")
def test_an_ipi_to_itself_meets_no_tracepoint(stamped: LabResult) -> None:
    sequences = truth_of(stamped).scenarios[SELF].sequences
    assert [s.stages for s in sequences] == [(Stage.SEND, Stage.HANDLER)]


@pytest.mark.lab("truth")
@pytest.mark.parametrize(("name", "turns"), [(RUNNING, 1), (BROADCAST, 1), (HALTED, 3)])
def test_a_longer_function_is_found_in_its_stage_alone(
    stamped: LabResult, held: LabResult, name: str, turns: int
) -> None:
    """A tick is the mean of both CPUs' turns; that of a halted target polls, in any phase."""
    without, with_hold = (steps_of(truth_of(result), name) for result in (stamped, held))
    longer = {stage: with_hold[stage] - without[stage] for stage in SENDERS_STEPS}
    assert longer.pop(Stage.ACCEPT) == pytest.approx(HOLD_TICKS, abs=turns * TURN_TICKS)
    assert list(longer.values()) == pytest.approx([0] * len(longer), abs=turns * TURN_TICKS)


@pytest.mark.lab("truth")
def test_what_is_written_is_what_was_found(stamped: LabResult) -> None:
    truth = truth_of(stamped)
    written = json.loads((stamped.output / "truth.json").read_text())["scenarios"]
    assert list(written) == list(DEFAULT_SCENARIOS)
    for name, part in truth.scenarios.items():
        for step in part.steps:
            stage = written[name]["stages"][step.stage.name.lower()]
            assert stage["since_send_ticks"] == step.since_send_cycles
    rows = pq.read_table(stamped.output / "truth.parquet").to_pylist()
    assert [row["accept_tsc"] for row in rows] == [
        ipi.stamps.get(Stage.ACCEPT) for ipi in truth.ipis
    ]
    assert len(rows) == 4 * 60


@pytest.mark.lab("truth")
@pytest.mark.parametrize("name", DEFAULT_SCENARIOS)
def test_the_corrected_stages_are_true(traced: LabResult, name: str) -> None:
    rows = [r for r in compare(traced.run, truth_of(traced)) if r.scenario == name]
    assert rows
    assert [(r.stage, r.corrected, r.true) for r in rows if not r.holds] == []


@pytest.mark.lab("truth")
@pytest.mark.parametrize("name", [RUNNING, BROADCAST])
def test_the_recorded_stages_are_not(traced: LabResult, name: str) -> None:
    """The weight is there: without the correction, the same comparison fails."""
    rows = [r for r in compare(traced.run, truth_of(traced)) if r.scenario == name]
    assert all(r.recorded is not None and r.recorded > r.true + r.allowed for r in rows)


@pytest.mark.lab("truth")
@pytest.mark.parametrize("name", DEFAULT_SCENARIOS)
def test_the_corrected_stages_add_up_to_the_untraced_d(traced: LabResult, name: str) -> None:
    stages = traced.scenario(name).stages
    assert stages is not None
    assert stages.corrected is not None
    assert stages.corrected.holds


@pytest.mark.lab("truth")
@pytest.mark.parametrize("name", [RUNNING, BROADCAST])
def test_functions_that_take_longer_are_found_in_their_stages_alone(
    traced: LabResult, held_traced: LabResult, name: str
) -> None:
    """Within 2 % of what the true stages grew by, or a turn of a CPU."""
    parted = [
        {r.stage: r for r in compare(result.run, truth_of(result)) if r.scenario == name}
        for result in (traced, held_traced)
    ]
    without, with_holds = parted
    assert without.keys() == with_holds.keys()
    for stage, row in with_holds.items():
        former = without[stage]
        assert row.corrected is not None
        assert former.corrected is not None
        longer, truly = row.corrected - former.corrected, row.true - former.true
        assert longer == pytest.approx(truly, rel=0.02, abs=TURN_TICKS)
        _name, ticks = HOLDS.get(Stage[stage.upper()], ("", 0))
        assert truly == pytest.approx(ticks, abs=TURN_TICKS)


def steps_of(truth: Truth, scenario: str) -> Mapping[Stage, int]:
    steps = truth.scenarios[scenario].steps
    return {step.stage: step.step_cycles for step in steps if step.step_cycles is not None}
