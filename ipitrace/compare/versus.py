# SPDX-License-Identifier: Apache-2.0
"""One scenario held against another: the same IPIs asked for in two ways."""

from collections.abc import Sequence
from dataclasses import replace

from ipitrace.base.errors import UsageError
from ipitrace.compare.fingerprint import Named
from ipitrace.words.scenarios import ScenarioStatus

# What makes a scenario another one. All else that must match still must.
_ASKED_FOR = ("send_method", "target_state", "pattern")


def parse_pair(text: str) -> tuple[str, str]:
    """Read `--pair BASE_SCENARIO=PATCHED_SCENARIO`.

    Raises:
        UsageError: it is no pair.
    """
    first, equals, second = text.partition("=")
    if not (first and equals and second):
        raise UsageError(
            f"--pair {text} is not a pair of scenarios.",
            "For instance: --pair unicast-running=unicast-running-passthrough",
        )
    return first, second


def under_pairs(recording: Named, pairs: Sequence[tuple[str, str]], side: int) -> Named:
    """A recording reduced to its scenarios of the pairs, each under the pair's name.

    Args:
        recording: after what the person calls it.
        pairs: a scenario of the base and one of the other side, each.
        side: 0 for a recording of the base, 1 for one of the other side.

    Raises:
        UsageError: it lacks a scenario of the pairs.
    """
    name, run = recording
    known = {row.name: row for row in run.scenarios if row.status == ScenarioStatus.MEASURED}
    missing = [pair[side] for pair in pairs if pair[side] not in known]
    if missing:
        raise UsageError(
            f"{name} measured no {', '.join(missing)}.",
            f"It has: {', '.join(known) or 'nothing'}.",
        )
    rows = tuple(replace(known[pair[side]], name="=".join(pair)) for pair in pairs)
    return name, replace(run, scenarios=rows)


def differing_on_purpose(pairs: Sequence[tuple[str, str]]) -> frozenset[str]:
    """What may differ in the scenarios of pairs: that by which they are other scenarios."""
    return frozenset(f"{'='.join(pair)}.{key}" for pair in pairs for key in _ASKED_FOR)
