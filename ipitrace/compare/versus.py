# SPDX-License-Identifier: Apache-2.0
"""Compares one scenario with another: the same IPIs, sent by two methods."""

from collections.abc import Sequence
from dataclasses import replace

from ipitrace.base.errors import UsageError
from ipitrace.compare.fingerprint import Named
from ipitrace.words.scenarios import ScenarioStatus

# Items in which paired scenarios may differ. All others that must match still must.
_DEFINING = ("send_method", "target_state", "pattern")


def parse_pair(text: str) -> tuple[str, str]:
    """Read `--pair BASE_SCENARIO=PATCHED_SCENARIO`.

    Raises:
        UsageError: the text is not a pair.
    """
    first, equals, second = text.partition("=")
    if not (first and equals and second):
        raise UsageError(
            f"--pair {text} is not a pair of scenarios.",
            "Example: --pair unicast-running=unicast-running-passthrough",
        )
    return first, second


def under_pairs(recording: Named, pairs: Sequence[tuple[str, str]], side: int) -> Named:
    """A recording reduced to its scenarios in the pairs, each under the pair's name.

    Args:
        recording: the recording, with the user's name of it.
        pairs: each is a scenario of the base and one of the other side.
        side: 0 for a recording of the base, 1 for one of the other side.

    Raises:
        UsageError: the recording lacks a scenario of the pairs.
    """
    name, run = recording
    known = {row.name: row for row in run.scenarios if row.status == ScenarioStatus.MEASURED}
    missing = [pair[side] for pair in pairs if pair[side] not in known]
    if missing:
        raise UsageError(
            f"{name} does not contain {', '.join(missing)}.",
            f"It contains: {', '.join(known) or 'no scenario'}.",
        )
    rows = tuple(replace(known[pair[side]], name="=".join(pair)) for pair in pairs)
    return name, replace(run, scenarios=rows)


def intended_differences(pairs: Sequence[tuple[str, str]]) -> frozenset[str]:
    """The keys that may differ between paired scenarios, because they define the scenario."""
    return frozenset(f"{'='.join(pair)}.{key}" for pair in pairs for key in _DEFINING)
