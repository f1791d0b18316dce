# SPDX-License-Identifier: Apache-2.0
"""Describes the disturbances of a run in sentences."""

from collections.abc import Collection, Iterable, Iterator

from ipitrace.recording.result import Disturbance


def describe_disturbances(disturbances: Iterable[Disturbance], *, worthless: bool) -> Iterator[str]:
    """Yield a sentence for each kind of disturbance: the worst one, and the number of others.

    Only disturbances whose `worthless` has the given value are included.
    """
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
    more = f"; also in {others} other repetition{'s' if others > 1 else ''}" if others else ""
    return f" (repetition {worst.repetition}: {worst.scenario}, {worst.mode}{more})"
