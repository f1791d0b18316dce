# SPDX-License-Identifier: Apache-2.0
"""The correlator, tables and report on what emulated hosts recorded (see lab/)."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from recorded import recorded_traces
from recordings import read_table

from ipitrace.base.errors import ExitCode
from ipitrace.commands.compare import compare
from ipitrace.commands.report import report
from ipitrace.correlate.exits import ExitTable, exit_tables
from ipitrace.correlate.spans import Spans, correlate
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.switches import count_switches
from ipitrace.correlate.trace import StormTrace
from ipitrace.measure.columns import RepetitionKey, span_columns
from ipitrace.recording.reader import read_run
from ipitrace.summary.exit_times import exit_times
from ipitrace.summary.storms import Cycles, HostSide, Measured, Repetition
from ipitrace.summary.weights import Weights
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.paths import IpiPath
from ipitrace.words.scenarios import DEFAULT_SCENARIOS, Mode, select_scenarios
from ipitrace.words.stages import Stage

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
AMD = RECORDINGS / "amd-tcg"
INTEL = RECORDINGS / "intel-bochs"
PASSTHROUGH_OFF = RECORDINGS / "passthrough-off"
PASSTHROUGH_ON = RECORDINGS / "passthrough-on"
PAIRS = tuple(
    (name, f"{name}-passthrough")
    for name in (
        *("unicast-running", "unicast-halted", "unicast-blocked", "unicast-preempted"),
        *("self", "broadcast"),
    )
)
MSR, HLT = 0x7C, 0x78  # arch/x86/include/uapi/asm/svm.h
VMX_HLT, VMX_IO, VMX_MSR_WRITE = 12, 30, 32  # arch/x86/include/uapi/asm/vmx.h
ON_THE_WAY = (Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT, Stage.INJECT, Stage.HANDLER)
Storms = list[tuple[str, StormTrace, Spans]]


@pytest.fixture(scope="module")
def amd() -> Storms:
    return [(name, trace, correlate(trace)) for name, _, trace in recorded_traces(AMD)]


@pytest.fixture(scope="module")
def intel() -> Storms:
    return [(name, trace, correlate(trace)) for name, _, trace in recorded_traces(INTEL)]


@pytest.mark.parametrize(
    "name", ["amd-tcg", "intel-bochs", "micro-pvm", "passthrough-off", "passthrough-on"]
)
def test_the_same_events_give_the_same_spans(name: str) -> None:
    """From the recorded events and guest stamps, every value of the recorded spans."""
    made: dict[str, list[Any]] = {}
    first_ipi = 0
    for scenario, repetition, trace in recorded_traces(RECORDINGS / name):
        spans = correlate(trace)
        columns = span_columns(RepetitionKey(scenario, repetition), spans, first_ipi)
        for column, values in columns.items():
            made.setdefault(column, []).extend(np.ma.asanyarray(values).tolist())
        first_ipi += len(spans.seq)
    recorded = read_table(RECORDINGS / name, "spans").to_pydict()
    if name.startswith("passthrough"):
        # Exits are counted from the clock's error before a send on: of its own repetition,
        # while run.json has the greatest of all. Here the host's timer falls in between.
        counts = ("sender_exits", "target_exits")
        apart = [abs(a - b) for key in counts for a, b in _pairs(made.pop(key), recorded.pop(key))]
        assert max(apart) <= 1
    # Format 1 also counted what the sender did beside its target, after the handler's begin.
    for one, former in zip(made.pop("sequence"), recorded.pop("sequence"), strict=True):
        assert set(former.split(" > ")) - set(one.split(" > ")) <= {"apicv_accept", "kick"}
    # A stage that was added since has a column that the recording does not have.
    assert {column: made[column] for column in recorded} == recorded


def test_kernels_as_they_are_hide_no_switch() -> None:
    recordings = [AMD, INTEL, PASSTHROUGH_OFF, PASSTHROUGH_ON]
    traces = [trace for recording in recordings for _, _, trace in recorded_traces(recording)]
    counted = [count_switches(trace.events) for trace in traces]
    assert sum(switches.seen for switches in counted) > 3000
    assert not any(switches.unseen for switches in counted)


def test_every_scenario_was_recorded_six_times(amd: Storms) -> None:
    names = [name for name, _, _ in amd]
    assert {name: names.count(name) for name in names} == dict.fromkeys(DEFAULT_SCENARIOS, 6)


def test_every_send_is_proved_to_go_through_the_msr(amd: Storms) -> None:
    for _, trace, spans in amd:
        assert set(spans.path) == {IpiPath.MSR_EXIT}
        assert len(spans.path) == len(trace.sends)
        assert (spans.sender_exits >= 1).all()
        assert spans.unmatched_ipis == 0


def test_stages_follow_each_other(amd: Storms) -> None:
    for _, trace, spans in amd:
        way = np.stack([spans.stage(stage) for stage in ON_THE_WAY], axis=1)
        assert (way != ABSENT).all()
        host, handler = way[:, :-1], way[:, -1]
        assert (np.diff(host, axis=1) >= 0).all()
        assert (handler > host[:, -1] - trace.bound_cycles).all()


def test_exits_of_both_sides_by_reason(amd: Storms) -> None:
    for name, trace, spans in amd:
        sent = len(trace.sends)
        tables = exit_tables(trace, spans)
        counts = [
            {reason: int((t.reason == reason).sum()) for reason in (MSR, HLT)} for t in tables
        ]
        # Without AVIC the writes of the ICR and of the EOI register exit, both.
        if name == "self":
            assert counts == [{MSR: 2 * sent, HLT: 0}]
        else:
            halts = pytest.approx(sent, abs=1) if name == "unicast-halted" else 0
            assert counts == [{MSR: sent, HLT: 0}, {MSR: sent, HLT: halts}]


def test_exits_end_in_entries(amd: Storms) -> None:
    for _, trace, spans in amd:
        for table in exit_tables(trace, spans):
            assert set(table.isa) == {Isa.SVM}
            # The last exit hands the storm's end to user space; a window may cut one more.
            assert np.count_nonzero(table.cycles == ABSENT) <= 2
            assert (_paired(table) > 0).all()


def test_less_than_all_events_proves_less(amd: Storms) -> None:
    """With the ICR's own exits gone, the same recording must not claim to know the path."""
    _, trace, spans = amd[0]
    kept = ~np.isin(trace.event_tsc, spans.stage(Stage.SENDER_EXIT))
    without = replace(trace, events=trace.events[kept], event_tsc=trace.event_tsc[kept])
    assert set(correlate(without).path) == {IpiPath.UNKNOWN}


def test_apicv_takes_the_exits_away(intel: Storms) -> None:
    """One exit to send; none to receive or to end the interrupt; none at all to itself."""
    for name, trace, spans in intel:
        sent = len(trace.sends)
        sender, *targets = exit_tables(trace, spans)
        sends = np.count_nonzero(sender.reason == VMX_MSR_WRITE)
        assert sends == (0 if name == "self" else sent)
        for target in targets:
            halts = np.count_nonzero(target.reason == VMX_HLT)
            assert halts == (pytest.approx(sent, abs=1) if name == "unicast-halted" else 0)
            assert not np.isin(target.reason, [VMX_MSR_WRITE, VMX_IO]).any()
        assert {isa for table in (sender, *targets) for isa in table.isa} <= {Isa.VMX}


def test_the_path_is_proved_by_what_vmx_shows(intel: Storms) -> None:
    expected = {
        "self": IpiPath.EXITLESS,
        "broadcast": IpiPath.MSR_EXIT,
    }
    for name, _, spans in intel:
        assert set(spans.path) == {expected.get(name, IpiPath.MSR_FASTPATH)}
        assert spans.unmatched_ipis == 0
        assert spans.unmatched_events == {}


def test_each_ipi_to_another_vcpu_was_posted(intel: Storms) -> None:
    for name, _, spans in intel:
        posted = spans.stage(Stage.APICV_ACCEPT) != ABSENT
        assert posted.all() if name != "self" else not posted.any()
        assert (spans.stage(Stage.INJECT) == ABSENT).all()


def test_passthrough_ipis_leave_nothing_at_the_sender() -> None:
    names = set()
    for name, _, trace in recorded_traces(PASSTHROUGH_ON):
        names.add(name)
        spans = correlate(trace)
        assert set(spans.path) == {IpiPath.EXITLESS}
        assert (spans.unmatched_ipis, spans.unmatched_events) == (0, {})
        for stage in (Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT, Stage.KICK, Stage.ICR_WRITE):
            assert (spans.stage(stage) == ABSENT).all(), stage
        preempted = name == "unicast-preempted-passthrough"
        assert (spans.stage(Stage.SCHED_IN) != ABSENT).all() or not preempted
    assert names == {patched for _, patched in PAIRS}


def test_a_passthrough_with_an_exit_at_the_sender_is_not_exitless() -> None:
    """One MSR_WRITE in mid-send, made up, and its IPI is no longer told to be exitless."""
    _, _, trace = next(iter(recorded_traces(PASSTHROUGH_ON)))
    victim = len(trace.sends) // 2
    exit_ = trace.events[:1].copy()
    exit_["kind"], exit_["vcpu"] = Kind.KVM_EXIT, trace.sender
    exit_["detail"], exit_["word"] = Isa.VMX, VMX_MSR_WRITE
    at = int(trace.sends["sent_tsc"][victim]) - 1
    where = int(np.searchsorted(trace.event_tsc, at))
    events = np.insert(trace.events, where, exit_)
    changed = replace(
        trace, events=events, event_tsc=np.insert(trace.event_tsc, where, at), bound_cycles=1
    )
    path = correlate(changed).path
    assert path[victim] != IpiPath.EXITLESS
    assert set(np.delete(path, victim)) == {IpiPath.EXITLESS}


def comparison(*more: str) -> dict[str, Any]:
    """Off against on, and the exit code as `code`."""
    pairs = [word for pair in PAIRS for word in ("--pair", "=".join(pair))]
    sides = [str(PASSTHROUGH_OFF), str(PASSTHROUGH_ON)]
    words = [*pairs, *more, "--all", "--format", "json", *sides]
    done = CliRunner().invoke(compare, words, standalone_mode=False)
    assert done.exception is None, done.exception
    (found,) = json.loads(done.output)["comparisons"]
    return {"code": done.return_value, **found}


def compared_gates(*gates: str) -> list[dict[str, Any]]:
    found = comparison(*gates)
    assert found["code"] == ExitCode.OK
    return list(found["gates"])


def compared(*more: str) -> dict[str, dict[str, Any]]:
    """The rows of off against on, by scenario and metric."""
    found = comparison(*more)
    rows: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        rows.setdefault(row["scenario"].partition("=")[0], {})[row["metric"]] = row
    return rows


def test_passthrough_takes_the_senders_exit_away_and_adds_none_to_the_target() -> None:
    for name, metrics in compared().items():
        if name != "self":  # the CPU delivers those itself
            row = metrics["exits.sender.MSR_WRITE"]
            assert (row["base"]["median"], row["patched"]["median"]) == (1, 0)
            assert row["verdict"] == metrics["exits.sender"]["verdict"] == "better"
            assert metrics["send.p50"]["verdict"] == "better"
            assert metrics["exits.target"]["verdict"] == "same"
        assert metrics["path.exitless"]["patched"]["median"] == 1


def test_gates_on_the_senders_exits_hold() -> None:
    pairs = ["=".join(pair) for pair in PAIRS if pair[0] != "self"]
    required = [word for pair in pairs for word in ("--require", f"{pair}:exits.sender:-0.5")]
    gates = compared_gates("--fail-on", "exits:+0.1", *required, "--strict")
    assert len(gates) > 2 * len(pairs)
    assert {gate["state"] for gate in gates} == {"held"}


@pytest.mark.parametrize(
    ("recording", "path"),
    [
        (AMD, "msr-exit"),
        (INTEL, "msr-fastpath"),
        (INTEL, "late posts (PIN, NPI, PIW"),
        (PASSTHROUGH_OFF, "msr-fastpath"),
        (PASSTHROUGH_ON, "exitless"),
    ],
)
def test_the_report_says_what_it_is(recording: Path, path: str) -> None:
    first = CliRunner().invoke(report, [str(recording)])
    assert first.exit_code == 0
    assert "emulated host: cycles are not real time" in first.output
    done = CliRunner().invoke(report, [str(recording), "--section", "all"])
    assert done.exit_code == 0
    assert "kvm_exit tracepoint" in done.output
    assert path in " ".join(done.output.split())


@pytest.mark.parametrize(("recording", "own"), [(AMD, "kvm_inj_virq"), (INTEL, "kvm_apicv")])
def test_an_ipi_can_be_told_whole(recording: Path, own: str) -> None:
    done = CliRunner().invoke(report, [str(recording), "--ipi", "10"])
    assert done.exit_code == 0
    assert "cycles are not real time" in done.output
    for event in ("kvm_exit", "kvm_entry", own):
        assert event in done.output


@pytest.mark.parametrize(
    ("recording", "emulator"),
    [(AMD, "QEMU TCG"), (INTEL, "Bochs"), (PASSTHROUGH_OFF, "Bochs"), (PASSTHROUGH_ON, "Bochs")],
)
def test_nothing_was_lost_and_the_clocks_agree(recording: Path, emulator: str) -> None:
    run = read_run(recording)
    assert run.complete
    assert run.untrustworthy == ()
    assert run.clock is not None
    assert set(run.clock.causality_violations.values()) == {0}
    assert run.host.fingerprint.emulated == emulator


def _pairs(ours: list[Any], theirs: list[Any]) -> Iterator[tuple[int, int]]:
    """What both have; neither has anything where the other has nothing."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            yield one, other


def _paired(table: ExitTable) -> NDArray[np.int64]:
    return table.cycles[table.cycles != ABSENT]


@pytest.mark.parametrize(
    ("name", "exit_cycles", "share"), [("unicast-running", 632, 0.725), ("broadcast", 1311, None)]
)
def test_exits_are_as_long_as_the_emulator_says(
    name: str, exit_cycles: int, share: float | None
) -> None:
    """docs/observer.md has the truth: sender_entry less sender_exit, and its part of D."""
    recording = RECORDINGS / "intel-bochs-2"
    (row,) = (row for row in read_run(recording).scenarios if row.name == name)
    assert row.stages is not None
    assert row.stages.corrected is not None
    assert row.stages.corrected.weights is not None
    modes = {figures.order: Mode(figures.mode) for figures in row.repetition_figures}
    found = exit_times(
        Measured(
            select_scenarios([name])[0],
            (1,),
            0,
            0,
            0,
            tuple(
                _repetition(trace, modes[order])
                for scenario, order, trace in recorded_traces(recording, ("stages", "evidence"))
                if scenario == name
            ),
        ),
        Weights.of(row.stages.corrected.weights),
    )
    (sends,) = (time for time in found if time.reason == "MSR_WRITE")
    assert (sends.side, sends.exits, sends.unpaired) == ("sender", 120, 0)
    assert sends.p50_cycles == pytest.approx(exit_cycles, abs=5)
    if share is not None:
        assert sends.share_of_deliver == pytest.approx(share, abs=0.015)


def _repetition(trace: StormTrace, mode: Mode) -> Repetition:
    spans = correlate(trace)
    none = np.zeros(0, np.int64)
    return Repetition(
        mode=mode,
        cycles=Cycles(none, none, none, 0, 0),
        n_vcpus=len(trace.receipts),
        sent=len(trace.sends),
        handled=tuple(map(len, trace.receipts)),
        timed_out=0,
        stats=None,
        watched=HostSide(spans, exit_tables(trace, spans), None),
    )
