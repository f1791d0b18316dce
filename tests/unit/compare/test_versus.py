# SPDX-License-Identifier: Apache-2.0
"""One scenario against another: `ipitrace compare --pair A=B`."""

from dataclasses import replace

import pytest
from comparisons import exits_of, run_of, steady

from ipitrace.base.errors import HostError, UsageError
from ipitrace.compare import Settings, compare
from ipitrace.compare.model import Comparison, Verdict
from ipitrace.compare.versus import parse_pair
from ipitrace.recording.result import RunResult

NAMES = ("off", "on")
PAIR = ("unicast-running", "unicast-running-passthrough")


def through_descriptors(factor: float = 0.5, **changes: object) -> RunResult:
    """A faster run of the other scenario, without exits at the sender."""
    (row,) = steady(factor=factor, exits=[exits_of(0.0)] * 8).scenarios
    other = replace(row, name=PAIR[1], send_method="passthrough", exits=exits_of(0.0))
    return run_of(replace(other, **changes))  # type: ignore[arg-type]


def held(patched: RunResult, settings: Settings) -> Comparison:
    return compare([(NAMES[0], steady())], [(NAMES[1], patched)], NAMES, settings)


def test_scenarios_of_other_names_are_held_against_each_other() -> None:
    found = held(through_descriptors(), Settings(pairs=(PAIR,)))
    assert {row.scenario for row in found.rows} == {"=".join(PAIR)}
    assert found.verdict == Verdict.BETTER
    (asked,) = (d for d in found.differences if d.key.endswith(".send_method"))
    assert (asked.base, asked.patched, asked.accepted) == ("x2apic", "passthrough", "--allow")


def test_without_the_pair_they_are_refused() -> None:
    with pytest.raises(HostError, match="have different scenarios"):
        held(through_descriptors(), Settings())


def test_a_pair_does_not_believe_in_a_path_that_exits() -> None:
    exiting = through_descriptors(exits=exits_of(1.0))
    with pytest.raises(HostError, match=r"the sender took 1\.00 exits per IPI"):
        held(exiting, Settings(pairs=(PAIR,), allow=frozenset({f"{'='.join(PAIR)}.send_method"})))
    uncounted = through_descriptors(exits=None)
    with pytest.raises(HostError, match="sender's exits were not counted"):
        held(uncounted, Settings(pairs=(PAIR,)))


def test_what_is_not_asked_for_must_still_match() -> None:
    other = through_descriptors(pace_cycles=7)
    with pytest.raises(HostError, match="pace_cycles"):
        held(other, Settings(pairs=(PAIR,)))


def test_a_scenario_that_was_not_measured_is_named() -> None:
    with pytest.raises(UsageError, match="on does not contain broadcast") as raised:
        held(through_descriptors(), Settings(pairs=((PAIR[0], "broadcast"),)))
    assert PAIR[1] in raised.value.hint


@pytest.mark.parametrize("text", ["", "a", "=", "a=", "=b"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a pair"):
        parse_pair(text)
    assert parse_pair("a=b") == ("a", "b")
