# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from comparisons import TRUTH, exits_of, held_against, noisy, row_of, run_of, steady
from runs import made_host

from ipitrace.base.errors import ExitCode, HostError, MeasurementError, UsageError
from ipitrace.compare import exit_code
from ipitrace.compare.gates import parse_gate
from ipitrace.compare.model import Comparison, GateKind, MinimumEffect, Row, Verdict
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ExitsPerIpi
from ipitrace.words.paths import PATH_RANKS, IpiPath


def row(comparison: Comparison, metric: str) -> Row:
    (found,) = [row for row in comparison.rows if row.metric == metric]
    return found


def test_a_run_is_the_same_as_itself() -> None:
    found = held_against(steady(), steady())
    assert {row.verdict for row in found.rows} == {Verdict.SAME}
    assert found.verdict == Verdict.SAME
    assert found.sentence.startswith("patched is the same as base: none of 5 headline metrics")
    assert exit_code([found], strict=True) == ExitCode.OK


@pytest.mark.parametrize(
    ("factor", "verdict", "code"),
    [
        (1.05, Verdict.WORSE, ExitCode.REGRESSION),
        (0.95, Verdict.BETTER, ExitCode.OK),
        (1.01, Verdict.SAME, ExitCode.OK),
    ],
)
def test_a_change_is_told_with_its_size(factor: float, verdict: Verdict, code: ExitCode) -> None:
    found = held_against(steady(), steady(factor=factor))
    deliver = row(found, "deliver.p50")
    assert deliver.verdict == found.verdict == verdict
    assert deliver.change == pytest.approx(factor - 1, abs=2e-4)
    assert deliver.change_low is not None
    assert deliver.change_low <= deliver.change
    assert abs(deliver.effect) == 1
    assert exit_code([found], strict=False) == code
    if verdict != Verdict.SAME:
        assert f"{factor - 1:+.1%}".rstrip("%") in found.sentence
        assert verdict in found.sentence


def test_better_and_worse_at_once_is_worse() -> None:
    medians = [dict(TRUTH, send=TRUTH["send"] * (1 + i / 1e4)) for i in range(8)]
    moved = [{**m, "send": m["send"] / 2, "round_trip": m["round_trip"] * 2} for m in medians]
    found = held_against(run_of(row_of("self", medians)), run_of(row_of("self", moved)))
    assert found.verdict == Verdict.WORSE
    assert "worse in round_trip.p50 of self" in found.sentence
    assert "but better in send.p50 of self" in found.sentence


def test_three_repetitions_prove_nothing_and_it_is_said_how_many_would() -> None:
    found = held_against(steady(3), steady(3, factor=2))
    assert found.verdict == Verdict.INCONCLUSIVE
    assert row(found, "deliver.p50").wanted == 5
    assert row(found, "deliver.p50").why == "too few repetitions"
    assert "repetitions on each side" in found.sentence
    assert exit_code([found], strict=False) == ExitCode.OK
    assert exit_code([found], strict=True) == ExitCode.UNTRUSTWORTHY


def test_noise_is_inconclusive_and_it_is_said_how_many_repetitions_it_takes() -> None:
    rng = np.random.default_rng(3)
    base, patched = (run_of(row_of("self", noisy(rng, 8, 0.1))) for _ in range(2))
    deliver = row(held_against(base, patched), "deliver.p50")
    assert deliver.verdict == Verdict.INCONCLUSIVE
    assert deliver.why == "too much noise between repetitions"
    assert deliver.wanted is not None
    assert deliver.wanted > 100
    assert (
        row(held_against(base, patched, minimum=MinimumEffect(cycles=0.5)), "deliver.p50").verdict
        == Verdict.SAME
    )


def test_exits_and_paths_are_compared_in_their_own_unit() -> None:
    through = {"exitless": 1.0}
    base = steady(exits=[exits_of(1.0, 1.0)] * 8)
    patched = steady(exits=[exits_of(0.0, 1.0)] * 8, paths=[through] * 8)
    found = held_against(base, patched)
    sender = row(found, "exits.sender")
    assert (sender.base.median, sender.patched.median, sender.change) == (1.0, 0.0, -1.0)
    assert sender.verdict == Verdict.BETTER
    assert row(found, "exits.sender.MSR_WRITE").verdict == Verdict.BETTER
    assert row(found, "exits.target").verdict == Verdict.SAME
    assert row(found, "path.exitless").verdict == Verdict.BETTER
    assert row(found, "path.msr-exit").verdict == Verdict.BETTER
    assert row(found, "path.msr-exit").change == -1.0


def test_a_path_of_no_merit_only_changes() -> None:
    found = held_against(steady(), steady(paths=[{"unknown": 0.5, "msr-exit": 0.5}] * 8))
    assert row(found, "path.unknown").verdict == Verdict.CHANGED


@pytest.mark.parametrize(
    ("before", "after", "verdicts"),
    [
        ({"msr-fastpath": 1}, {"exitless": 1}, {"msr-fastpath": "better", "exitless": "better"}),
        ({"exitless": 1}, {"msr-fastpath": 1}, {"msr-fastpath": "worse", "exitless": "worse"}),
        ({"msr-exit": 1}, {"msr-fastpath": 1}, {"msr-fastpath": "better", "msr-exit": "better"}),
        ({"msr-fastpath": 1}, {"mmio": 1}, {"msr-fastpath": "worse", "mmio": "worse"}),
        ({"mmio": 1}, {"msr-exit": 1}, {"mmio": "changed", "msr-exit": "changed"}),
        ({"msr-fastpath": 1}, {"unknown": 1}, {"msr-fastpath": "changed", "unknown": "changed"}),
        (
            {"msr-fastpath": 1},
            {"exitless": 0.5, "msr-exit": 0.5},
            {"msr-fastpath": "changed", "exitless": "better", "msr-exit": "worse"},
        ),
        (
            {"msr-fastpath": 0.5, "msr-exit": 0.5},
            {"msr-fastpath": 0.9, "exitless": 0.1},
            {"msr-fastpath": "better", "exitless": "better", "msr-exit": "better"},
        ),
    ],
)
def test_a_path_is_judged_by_where_its_share_went(
    before: dict[str, float], after: dict[str, float], verdicts: dict[str, str]
) -> None:
    found = held_against(steady(paths=[before] * 8), steady(paths=[after] * 8))
    assert {path: row(found, f"path.{path}").verdict for path in verdicts} == verdicts
    assert found.verdict == Verdict.SAME, "paths are no headline"


def test_every_path_but_unknown_has_a_rank() -> None:
    assert {path.text for path in IpiPath} - PATH_RANKS.keys() == {"unknown"}


def test_a_reason_that_one_side_never_saw_counts_as_zero() -> None:
    only_total = ExitsPerIpi("kvm_exit", {"exits": 0.5}, {"exits": 0.0})
    found = held_against(steady(exits=[only_total] * 8), steady(exits=[exits_of(0.5)] * 8))
    assert row(found, "exits.sender.MSR_WRITE").base.median == 0
    assert row(found, "exits.sender.MSR_WRITE").verdict == Verdict.WORSE
    assert not row(found, "exits.sender.MSR_WRITE").headline


def test_cycles_are_those_that_nobody_watched() -> None:
    found = held_against(steady(), steady())
    assert row(found, "deliver.p50").base.median == pytest.approx(TRUTH["deliver"], rel=1e-3)
    assert row(found, "deliver.p50").base.n == 8


def test_a_run_without_tracing_compares_cycles_and_what_was_counted() -> None:
    def untraced(run: RunResult) -> RunResult:
        (one,) = run.scenarios
        figures = tuple(
            replace(f, exits=exits_of(2.0)) for f in one.repetition_figures if f.mode == "off"
        )
        return run_of(replace(one, repetition_figures=figures))

    found = held_against(untraced(steady()), untraced(steady()))
    assert row(found, "exits.sender").base.median == 2.0
    assert not [r for r in found.rows if r.metric.startswith("path.")]


@pytest.mark.parametrize(
    ("gate", "factor", "held", "code"),
    [
        ("deliver:+5%", 1.04, "held", ExitCode.OK),
        ("deliver:+5%", 1.06, "broken", ExitCode.REGRESSION),
        ("deliver.p99:+5%", 1.06, "broken", ExitCode.REGRESSION),
        ("unicast-running:deliver.p50:+0%", 1.01, "broken", ExitCode.REGRESSION),
    ],
)
def test_gates(gate: str, factor: float, held: str, code: ExitCode) -> None:
    found = held_against(steady(), steady(factor=factor), gates=(parse_gate(gate),))
    assert [g.state for g in found.gates] == [held]
    assert exit_code([found], strict=True) == code


@pytest.mark.parametrize(
    ("gate", "factor", "state", "code"),
    [
        ("deliver:-30%", 0.69, "held", ExitCode.OK),
        ("deliver:-30%", 0.71, "broken", ExitCode.REGRESSION),
        ("deliver:-30%", 1.0, "broken", ExitCode.REGRESSION),
        ("deliver:-30%", 1.5, "broken", ExitCode.REGRESSION),
        ("unicast-running:deliver.p99:-0.1%", 0.9, "held", ExitCode.OK),
    ],
)
def test_required_gates(gate: str, factor: float, state: str, code: ExitCode) -> None:
    gates = (parse_gate(gate, GateKind.REQUIRE),)
    found = held_against(steady(), steady(factor=factor), gates=gates)
    assert [g.state for g in found.gates] == [state]
    assert exit_code([found], strict=True) == code


@pytest.mark.parametrize(
    ("gate", "share", "state"),
    [
        ("path.exitless:+0.3", 0.6, "held"),
        ("path.exitless:+0.3", 0.2, "broken"),
        ("path.msr-exit:-0.3", 0.6, "held"),
        ("exits.sender:-0.1", 0.1, "held"),
        ("exits.sender:-0.11", 0.1, "broken"),
    ],
)
def test_more_of_a_share_or_less_of_a_count_can_be_required(
    gate: str, share: float, state: str
) -> None:
    """1.1 exits less 0.1 are 1 exit and a rounding error: that is no reason to break."""
    base = steady(exits=[exits_of(1.1)] * 8)
    moved = [{"exitless": share, "msr-exit": 1 - share}] * 8
    patched = steady(exits=[exits_of(1.1 - share)] * 8, paths=moved)
    found = held_against(base, patched, gates=(parse_gate(gate, GateKind.REQUIRE),))
    assert [g.state for g in found.gates] == [state]


def test_a_requirement_is_met_only_if_the_whole_interval_lies_beyond_it() -> None:
    """The estimate is beyond the limit, and the change is real; the interval has both sides."""
    rng = np.random.default_rng(3)
    base, patched = (run_of(row_of("self", noisy(rng, 12, 0.1, f))) for f in (1.0, 0.65))
    gates = tuple(parse_gate(f"deliver:-{share}%", GateKind.REQUIRE) for share in (10, 30, 60))
    found = held_against(base, patched, gates=gates)
    deliver = row(found, "deliver.p50")
    assert deliver.change_low is not None
    assert deliver.change_high is not None
    assert deliver.change_low < deliver.change < -0.3 < deliver.change_high < -0.1
    assert [g.state for g in found.gates] == ["held", "open", "broken"]
    assert "is not entirely beyond the limit" in found.gates[1].why
    undecided = held_against(base, patched, gates=gates[1:2])
    assert exit_code([undecided], strict=False) == ExitCode.OK
    assert exit_code([undecided], strict=True) == ExitCode.UNTRUSTWORTHY
    few = held_against(steady(3), steady(3, factor=0.5), gates=gates[:1])
    assert [g.state for g in few.gates] == ["open"]
    assert few.gates[0].why == "too few repetitions: with 1 gated metric, each side needs 4"


def test_a_gate_on_exits_is_on_both_sides() -> None:
    patched = steady(exits=[exits_of(1.2, 0.05)] * 8)
    found = held_against(steady(), patched, gates=(parse_gate("exits:+0.1"),))
    assert {(g.metric, g.state) for g in found.gates} == {
        ("exits.sender", "broken"),
        ("exits.target", "held"),
    }


def test_an_open_gate_fails_only_when_strict() -> None:
    rng = np.random.default_rng(3)
    base, patched = (run_of(row_of("self", noisy(rng, 8, 0.1))) for _ in range(2))
    found = held_against(base, patched, gates=(parse_gate("deliver:+1%"),))
    assert [g.state for g in found.gates] == ["open"]
    assert exit_code([found], strict=False) == ExitCode.OK
    assert exit_code([found], strict=True) == ExitCode.UNTRUSTWORTHY


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("ring:deliver:+5%", "matches nothing that was measured"),
        ("ring:path.mmio:+0.1", "matches nothing that was measured"),
        ("exits.sender.MSR_WRIT:+1", "no exit reason 'MSR_WRIT'"),
        ("path.mmo:+0.1", "no path 'mmo'"),
    ],
)
def test_a_gate_on_nothing_is_refused(gate: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        held_against(steady(), steady(), gates=(parse_gate(gate),))


@pytest.mark.parametrize(
    "gate", ["exits.sender.EPT_VIOLATION:+0", "exits.target.halt_exits:+1", "path.mmio:+0.1"]
)
def test_a_gate_holds_where_what_it_names_never_happens(gate: str) -> None:
    found = held_against(steady(), steady(), gates=(parse_gate(gate),))
    assert [g.state for g in found.gates] == ["held"]
    assert row(found, found.gates[0].metric).patched.median == 0


def test_a_gate_on_what_nobody_counted_is_refused() -> None:
    (one,) = steady().scenarios
    blind = replace(
        one, repetition_figures=tuple(replace(f, paths=None) for f in one.repetition_figures)
    )
    with pytest.raises(UsageError, match="matches nothing that was measured"):
        held_against(run_of(blind), run_of(blind), gates=(parse_gate("path.mmio:+0.1"),))


def test_gated_metrics_are_a_family_of_their_own() -> None:
    """Six repetitions cannot prove anything among dozens of details, but one that was named."""
    gated = held_against(steady(6), steady(6, factor=2), gates=(parse_gate("deliver.p99:+5%"),))
    assert [g.state for g in gated.gates] == ["broken"]
    assert gated.gates[0].p_corrected == row(gated, "deliver.p99").p == pytest.approx(2 / 924)
    assert row(gated, "deliver.p99").p_corrected > gated.gates[0].p_corrected
    few = held_against(steady(3), steady(3, factor=2), gates=(parse_gate("deliver.p99:+5%"),))
    assert [g.state for g in few.gates] == ["open"]
    assert few.gates[0].why == "too few repetitions: with 1 gated metric, each side needs 4"


def test_a_repetition_without_cycles_is_not_left_out() -> None:
    (one,) = steady().scenarios
    first, *rest = one.repetition_figures
    run = run_of(replace(one, repetition_figures=(replace(first, deliver_cycles=None), *rest)))
    found = held_against(steady(), run)
    assert [m.metric for m in found.missing] == ["deliver.p50"]
    assert not [r for r in found.rows if r.metric.startswith("deliver")]
    assert found.verdict == Verdict.INCONCLUSIVE
    assert found.sentence.startswith("Inconclusive: patched or base lacks some")


def test_nothing_in_common_is_refused() -> None:
    (one,) = steady().scenarios
    nothing = tuple(
        replace(
            f, send_cycles=None, deliver_cycles=None, round_trip_cycles=None, exits=None, paths=None
        )
        for f in one.repetition_figures
    )
    run = run_of(replace(one, repetition_figures=nothing))
    with pytest.raises(MeasurementError, match="no metric in common"):
        held_against(run, run)


def test_emulated_and_real_cycles_are_never_compared() -> None:
    run = steady()
    emulated = replace(run, host=made_host(emulated="Bochs"))
    with pytest.raises(HostError, match="emulated"):
        held_against(run, emulated)
    found = held_against(run, emulated, allow=frozenset({"emulated"}))
    assert {r.unit for r in found.rows} == {"exits/IPI", "share"}
    assert {m.why for m in found.missing} == {"emulated and real cycles"}
    alike = held_against(emulated, emulated)
    assert row(alike, "deliver.p50").verdict == Verdict.SAME
    assert "Emulated host: cycles are not real time." in alike.sentence


def test_one_scenario_alone() -> None:
    both = run_of(*(replace(steady().scenarios[0], name=name) for name in ("self", "broadcast")))
    found = held_against(both, both, scenarios=("self",))
    assert {row.scenario for row in found.rows} == {"self"}
    with pytest.raises(UsageError, match="has no scenario 'ring'"):
        held_against(both, both, scenarios=("ring",))


def runs(factors: Sequence[float], n: int = 6) -> list[RunResult]:
    return [steady(n, factor) for factor in factors]


def test_recordings_are_the_units_where_a_side_has_several() -> None:
    """The repetitions of each say +5 %, precisely; between recordings of a side it is as much."""
    base, patched = runs([1.0, 1.06, 0.97]), runs([1.05, 1.11, 1.02])
    one = row(held_against(base[0], patched[0]), "deliver.p50")
    assert (one.verdict, one.between_recordings) == (Verdict.WORSE, None)
    several = row(held_against(base, patched), "deliver.p50")
    assert several.verdict == Verdict.INCONCLUSIVE
    assert several.why == "too few recordings"
    assert (several.base.n, several.patched.n) == (3, 3)
    assert several.between_recordings == pytest.approx(1.06 / 0.97 - 1, abs=1e-3)
    assert several.change == pytest.approx(0.05, abs=0.01)
    assert several.change_low is not None
    assert several.change_high is not None
    assert several.change_low < -0.03
    assert several.change_high > 0.13


@pytest.mark.parametrize("kind", list(GateKind))
def test_a_gate_on_too_few_recordings_says_nothing_of_an_interval(kind: GateKind) -> None:
    gate = parse_gate(f"deliver.p50:{'-' if kind == GateKind.REQUIRE else '+'}50%", kind)
    found = held_against(runs([1.0, 1.02], 1), runs([1.0, 1.03], 1), gates=(gate,))
    assert row(found, "deliver.p50").change_low is None
    assert [g.why for g in found.gates] == ["too few recordings: the change has no interval yet"]


@pytest.mark.parametrize(("n_base", "n_patched"), [(3, 3), (4, 1), (1, 4), (6, 6)])
def test_a_change_far_beyond_what_recordings_differ_by_is_found(
    n_base: int, n_patched: int
) -> None:
    spread = [1.0, 1.01, 0.99, 1.005, 0.995, 1.002]
    found = held_against(runs(spread[:n_base]), runs([f * 0.3 for f in spread[:n_patched]]))
    assert row(found, "deliver.p50").verdict == Verdict.BETTER
    assert "recording a side" not in found.sentence


def test_two_of_the_base_and_one_patched_prove_little() -> None:
    found = held_against(runs([1.0, 1.01]), runs([1.2]))
    assert row(found, "deliver.p50").verdict == Verdict.INCONCLUSIVE


def test_three_equal_recordings_are_no_proof_that_none_differ() -> None:
    """Exits that were the same in every recording so far, of one repetition each."""
    base, patched = ([steady(1, exits=[exits_of(count)]) for _ in range(3)] for count in (1.0, 1.2))
    assert row(held_against(base, patched), "exits.sender").verdict == Verdict.INCONCLUSIVE
    more = [[steady(8, exits=[exits_of(count)] * 8)] * 3 for count in (1.0, 1.2)]
    assert row(held_against(*more), "exits.sender").verdict == Verdict.WORSE


def test_a_side_is_of_one_configuration() -> None:
    def kernel(release: str) -> RunResult:
        run = steady()
        return replace(run, host=made_host(kernel_release=release))

    sides = [kernel("6.1"), kernel("6.2")], [kernel("6.3")]
    with pytest.raises(HostError, match=r"base and base1 are not comparable.*kernel_release"):
        held_against(*sides)
    assert held_against(*sides, allow=frozenset({"kernel_release"})).differences


def test_a_watched_run_is_not_held_against_an_unwatched_one() -> None:
    (one,) = steady().scenarios
    unwatched = tuple(
        replace(f, exits=exits_of(1.0)) for f in one.repetition_figures if f.mode == "off"
    )
    with pytest.raises(HostError, match=r"unicast-running\.traced \(yes -> no\)"):
        held_against(steady(), run_of(replace(one, repetition_figures=unwatched)))
