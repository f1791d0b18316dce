# SPDX-License-Identifier: Apache-2.0
"""What disturbed a run, as sentences."""

from collections.abc import Collection, Iterable, Iterator

from ipitrace.recording.result import Disturbance


def describe_disturbances(disturbances: Iterable[Disturbance], *, worthless: bool) -> Iterator[str]:
    """The disturbances of one weight as sentences: of each kind the worst, and how many more."""
    groups: dict[tuple[str, str], list[Disturbance]] = {}
    for one in disturbances:
        if one.worthless == worthless:
            key = (one.kind, "" if one.share is not None else one.says)
            groups.setdefault(key, []).append(one)
    for group in groups.values():
        worst = max(group, key=lambda one: one.share or 0.0)
        yield worst.says + _where(worst, {one.repetition for one in group})


def _where(worst: Disturbance, repetitions: Collection[int | None]) -> str:
    if worst.repetition is None:
        return ""
    others = len(repetitions) - 1
    more = f"; so in {others} more" if others else ""
    return f" (repetition {worst.repetition}: {worst.scenario}, {worst.mode}{more})"
