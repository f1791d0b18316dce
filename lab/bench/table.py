# SPDX-License-Identifier: Apache-2.0
"""The tables: what each watcher adds to S, D and R, and what it records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from bench.added import Added
from bench.report import CYCLES, Report, Series
from bench.storms import WARMUP
from bench.watchers import NOTHING, OTHER_VM, STAGE_TRACEPOINTS
from ipitrace.words.metrics import DELIVER, ROUND_TRIP, TIMINGS
from lab.common.steps import LabError

_SHOWN: Final = 0.5  # events per IPI: fewer do not belong to each IPI
_EACH_IPI: Final = "kvm_exit"  # every watcher sees it, in every scenario measured here
_NEARLY_ALL: Final = 0.95

Recorded = Callable[[Added], Mapping[str, int]]


def reports(
    found: Sequence[Added], recorded: Recorded, versions: Mapping[str, str]
) -> Iterator[Report]:
    """One table for each scenario.

    Args:
        found: of one boot.
        recorded: the events in the files of a tool, also of the warm-up.
        versions: of the tools' packages.

    Raises:
        LabError: a tool recorded too little to have traced the whole storm.
    """
    for name, group in groupby(found, lambda added: added.scenario):
        yield _report(name, list(group), recorded, versions)


def _report(
    name: str, found: Sequence[Added], recorded: Recorded, versions: Mapping[str, str]
) -> Report:
    letters = [timing.letter for timing in TIMINGS]
    rows: list[Sequence[str]] = []
    series = []
    for added in found:
        if added.watched is None:
            rows.append((added.watcher, *[""] * (len(letters) + 1), added.why))
            continue
        series += [
            Series(f"{letter} watched by {added.watcher}, {name}", CYCLES, [added.watched[letter]])
            for letter in letters
        ]
        if added.watcher == NOTHING:
            rows.append((NOTHING, *(f"{added.watched[letter]:,.0f}" for letter in letters), "", ""))
            continue
        more = {letter: added.watched[letter] - added.nothing[letter] for letter in letters}
        share = more[DELIVER.letter] / more[ROUND_TRIP.letter]
        rows.append(
            (
                added.watcher,
                *(f"{more[letter]:+,.0f}" for letter in letters),
                f"{share:.0%}",
                _events(added, recorded),
            )
        )
    ranges = ", ".join(
        f"{letter} {_range([a.nothing[letter] for a in found])}" for letter in letters
    )
    return Report(
        f"What watching adds to an IPI, in instructions: {name}",
        ("watched by", *letters, "D / R", "events per IPI"),
        rows,
        (
            f"Medians of {found[0].sent} IPIs, less those of the same storm without a watcher",
            f"directly before; those were {ranges} in all {len(found)} pairs.",
            "D / R: the part of the added round trip that comes before the handler.",
            f"Events that a watcher recorded or counted {_SHOWN} times per IPI or more, rounded.",
            f"The same tracepoints: {', '.join(STAGE_TRACEPOINTS)};",
            "bpftrace counts them in our process only, perf and trace-cmd record the whole host.",
            "Debian's packages: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        ),
        series,
    )


def _events(added: Added, recorded: Recorded) -> str:
    counted, ipis = added.counted, added.sent
    if added.key:
        counted, ipis = dict(recorded(added)), added.sent + WARMUP
    per_ipi = {event: n / ipis for event, n in counted.items()}
    seen = per_ipi.get(_EACH_IPI, 0.0)
    if seen < _NEARLY_ALL and added.watcher != OTHER_VM:
        raise LabError(
            f"{added.watcher} recorded {seen:.2f} {_EACH_IPI} per IPI of {added.scenario}: it did "
            "not trace the whole storm, so its figures mean nothing"
        )
    return ", ".join(
        event if n < 2 - _SHOWN else f"{event} x {n:.0f}"
        for event, n in sorted(per_ipi.items())
        if n >= _SHOWN
    )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
