# SPDX-License-Identifier: Apache-2.0
"""The kernel's account of the BPF programs, one table for each mode."""

from collections.abc import Iterator

from ipitrace.recording.program_costs import ModeCosts, ProgramCosts, Spread
from ipitrace.render.page import Page, Table

_NOTHING = "-"
_HEADERS = ("scenario", "program", "runs", "ns/run", "[range]", "ns/IPI", "[range]")


def program_costs(costs: ProgramCosts | None, page: Page) -> Iterator[str]:
    """Yield the tables; none if the kernel did not account."""
    if costs is None:
        return
    modes = list(dict.fromkeys(mode for by_mode in costs.costs.values() for mode in by_mode))
    title = (
        "Probe costs: the kernel's account of each BPF program in mode {mode}, from repetitions "
        "that are in no other figure; medians of {repetitions} repetitions and their range. runs: "
        "per IPI, by any thread of this host. Each run includes {own:.0f} ns of the accounting "
        "itself, which is what the kernel accounts for a program that only returns."
    )
    for mode in modes:
        lines = [
            line
            for name, by_mode in costs.costs.items()
            if mode in by_mode
            for line in _lines(name, by_mode[mode])
        ]
        titled = title.format(mode=mode, repetitions=costs.repetitions, own=costs.own_ns)
        yield page.table(titled, Table(_HEADERS, lines, text=(0, 1), keys=2, together=(4, 6)))


def _lines(scenario: str, costs: ModeCosts) -> Iterator[tuple[str, ...]]:
    for event, cost in costs.programs.items():
        runs = f"{cost.runs_per_ipi:.2f}"
        yield (scenario, event, runs, *_cells(cost.ns_per_run), *_cells(cost.ns_per_ipi))
        scenario = ""
    yield (scenario, "all programs", *(_NOTHING,) * 3, *_cells(costs.ns_per_ipi))


def _cells(spread: Spread) -> tuple[str, str]:
    return f"{spread.median:.0f}", f"[{spread.least:.0f}, {spread.most:.0f}]"
