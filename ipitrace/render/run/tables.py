# SPDX-License-Identifier: Apache-2.0
"""A run as tables: for a terminal or a log, and as Markdown."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.base.units import cycles_to_ns
from ipitrace.recording.result import (
    ClockResult,
    ObserverCost,
    PairedDifference,
    RunResult,
)
from ipitrace.recording.row import PerSide, ScenarioResult, Summary
from ipitrace.render.page import MarkdownPage, Page, Table, TextPage, document
from ipitrace.render.run.guest import guest_line, limits_line
from ipitrace.render.run.notes import DOUBT, not_measured, notes_of
from ipitrace.render.run.overcommit import overcommit_tables
from ipitrace.render.run.program_costs import program_costs
from ipitrace.render.run.stages import stages_table
from ipitrace.words.metrics import ALL_TIMINGS, TIMINGS
from ipitrace.words.scenarios import MODES, OLD_TRACED, Mode, ScenarioStatus
from ipitrace.words.sections import ALL, SECTIONS

_NOTHING = "-"
_ADDED = {
    OLD_TRACED: "when they count (counting) and when they also record (full)",
    MODES[1:]: "when they record only the stages' events (stages) and all events (evidence)",
}
_INDENT = " " * 7


def render_run(
    run: RunResult,
    *,
    sections: Collection[str] = (ALL,),
    verbose: bool = False,
    width: int = PIPE_WIDTH,
) -> str:
    """The tables of a run as text of `width` columns.

    `sections` are of SECTIONS; with `verbose` all of them, and what was traced and how.
    """
    return _render(run, TextPage(width), sections, verbose=verbose)


def render_markdown(
    run: RunResult, *, sections: Collection[str] = (), verbose: bool = False
) -> str:
    """All sections, or the given ones, as Markdown."""
    return _render(run, MarkdownPage(), sections or (ALL,), verbose=verbose)


def _render(run: RunResult, page: Page, sections: Collection[str], *, verbose: bool) -> str:
    run = plain_values(run)
    measured = [row for row in run.scenarios if row.status == ScenarioStatus.MEASURED]
    chosen = SECTIONS.keys() if verbose or ALL in sections else sections
    parts = [page.heading(f"ipitrace run, started {run.started_at}"), _header(run, page)]
    if measured:
        parts += [_cycles(run, measured, page), _of_vcpus(measured, page)]
        parts += overcommit_tables(measured, page)
        tables: Mapping[str, Callable[[], Sequence[str]]] = {
            "exits": lambda: (_exits(measured, page), _exit_times(measured, page)),
            "paths": lambda: (_paths(measured, page),),
            "stages": lambda: [stages_table(r, r.stages, page) for r in measured if r.stages],
            "events": lambda: (_events(run, measured, page),),
            "observer": lambda: (
                _observer(run, measured, page),
                *program_costs(run.program_costs, page),
            ),
        }
        parts += [part for name, make in tables.items() if name in chosen for part in make()]
    parts.append(page.items("Not measured:", list(not_measured(run))))
    notes = notes_of(run, measured)
    if "losses" in chosen:
        parts.append(page.lines([("losses ", _losses(run))]))
    else:
        notes = [note for note in notes if note.label == DOUBT]
    parts.append(page.lines((note.label, note.text) for note in notes))
    if verbose:
        parts.append(_details(run, page))
    return document(parts)


def _header(run: RunResult, page: Page) -> str:
    clock = run.clock
    lines = [("host   ", run.host.one_line), ("guest  ", guest_line(run))]
    if run.limits is not None:
        lines.append(("limits ", limits_line(run.limits)))
    if clock.tsc_hz:
        rate = f"TSC {clock.tsc_hz / 1e6:.3f} MHz"
        if clock.tsc_error_hz is not None:
            rate += f" +- {clock.tsc_error_hz:.0f} Hz"
        rate += f", {clock.source}"
        lines.append(("clock  ", rate))
    if clock.half_width_ns is not None:
        reading = (
            f"error bound: {clock.half_width_cycles:.0f} cycles "
            f"({clock.half_width_ns:.0f} ns) for one reading of both clocks"
        )
        if clock.bound_cycles is not None:
            reading += (
                f", {clock.bound_cycles} cycles ({clock.bound_ns:.0f} ns) for a host event on the "
                "guest's clock"
            )
        lines.append((_INDENT, reading))
    if clock.drift_ppm is not None:
        drift = (
            f"drift {clock.drift_ppm:.3f} ppm (errors of the readings can account for "
            f"{clock.drift_noise_ppm:.3f} ppm); causality violations: {_violations(clock)}"
        )
        lines.append((_INDENT, drift))
    return page.lines(lines)


def _violations(clock: ClockResult) -> str:
    found = [f"{kind} {n}" for kind, n in clock.causality_violations.items() if n]
    return ", ".join(found) or f"none of {len(clock.causality_violations)} kinds"


def _cycles(run: RunResult, rows: Sequence[ScenarioResult], page: Page) -> str:
    """S, D and R are rows, so that the table fits into a terminal.

    Recordings of version 1 have the figures of traced repetitions, and then what tracing added.
    """
    of_traced = run.observer is not None and run.schema_version == 1
    watched = ("watching",) if of_traced else ()
    headers = ("scenario", "", "p50", "p50 ns", *watched, "p90", "p99", "max")
    lines: list[tuple[str, ...]] = []
    for row in rows:
        costs = run.observer.costs.get(row.name, {}) if run.observer else {}
        counts = (row.name, f"{row.sent} sent", f"{row.delivered} delivered")
        timings = TIMINGS if row.last_deliver_cycles is None else ALL_TIMINGS
        firsts = (*counts, *[""] * (len(timings) - len(counts)))
        for first, timing in zip(firsts, timings, strict=True):
            p50, ns, *rest = _summary_cells(getattr(row, timing.field), run.clock.tsc_hz)
            cost = costs.get(timing.name)
            full = cost.full if cost else None
            added = (f"{full.median:+d}" if full else _NOTHING,) if watched else ()
            lines.append((first, timing.letter, p50, ns, *added, *rest))
    explained = TIMINGS if all(row.last_deliver_cycles is None for row in rows) else ALL_TIMINGS
    title = f"Cycles per IPI: {', '.join(timing.label for timing in explained)}"
    if watched:
        title += "; watching: cycles that the probes add to the p50, see the observer cost below"
    elif run.observer:
        title += "; of repetitions in which nothing was traced"
    return page.table(title, Table(headers, lines, text=(0, 1), keys=2))


def _of_vcpus(rows: Sequence[ScenarioResult], page: Page) -> str:
    """The vCPUs of scenarios with several targets or senders."""
    headers = ("scenario", "vCPU", "S p50", "D p50", "D p90", "D p99", "D max", "R p50")
    lines = []
    for row in rows:
        for own in row.vcpus or ():
            deliver = own.deliver_cycles
            of_deliver = (
                (_NOTHING,) * 4
                if deliver is None
                else (f"{deliver.p50}", f"{deliver.p90}", f"{deliver.p99}", f"{deliver.max}")
            )
            sends = (_p50(own.send_cycles), *of_deliver, _p50(own.round_trip_cycles))
            lines.append((row.name, f"{own.vcpu}", *sends))
    if not lines:
        return ""
    title = "Cycles of each vCPU: S and R of the IPIs that it sent, D of those that it handled"
    return page.table(title, Table(headers, lines, text=(0,), keys=2))


def _p50(summary: Summary | None) -> str:
    return _NOTHING if summary is None else f"{summary.p50}"


def _summary_cells(summary: Summary | None, tsc_hz: float | None) -> tuple[str, ...]:
    if summary is None:
        return (_NOTHING,) * 5
    ns = f"{cycles_to_ns(summary.p50, tsc_hz):.0f}" if tsc_hz else _NOTHING
    return (
        f"{summary.p50}",
        ns,
        f"{summary.p90}",
        f"{summary.p99}",
        f"{summary.max}",
    )


def _exits(rows: Sequence[ScenarioResult], page: Page) -> str:
    names = _ordered(
        name
        for row in rows
        if row.exits
        for side in (row.exits.sender, row.exits.target)
        for name in side or ()
    )
    headers = ("scenario", "vCPU", *names)
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if row.exits is None:
            continue
        for label, side in (("sender", row.exits.sender), ("target", row.exits.target)):
            if side is not None:
                cells = (_per_ipi(side.get(name, 0.0)) for name in names)
                lines.append((row.name, label, *cells))
    sources = _ordered(row.exits.source for row in rows if row.exits and row.exits.source)
    uncounted = [row for row in rows if not (row.exits and row.exits.source)]
    unknown = "no source of counts is known"
    reasons = _ordered((row.absent or {}).get("exits.source", unknown) for row in uncounted)
    if not sources:
        return page.paragraph(f"VM exits per IPI: not counted, {'; '.join(reasons)}")
    title = f"VM exits per IPI (source: {', '.join(sources)})"
    if uncounted:
        title += f";\nnot counted in {', '.join(row.name for row in uncounted)}: "
        title += "; ".join(reasons)
    if not names:
        return "\n".join(map(page.paragraph, (title, "none were counted")))
    return page.table(title, Table(headers, lines, text=(0, 1), keys=2))


def _events(run: RunResult, rows: Sequence[ScenarioResult], page: Page) -> str:
    """Tracepoints are rows and scenarios are columns: there are more tracepoints."""
    if run.observer is None:
        return page.paragraph(f"Tracepoints per IPI: not counted, {run.observer_absent}")
    names = _ordered(name for row in rows for name in row.events_per_ipi or ())
    title = "Tracepoints per IPI, sender + target"
    if not names:
        return "\n".join(map(page.paragraph, (title, "none fired")))
    lines = [
        (name, *(_sides((row.events_per_ipi or {}).get(name)) for row in rows)) for name in names
    ]
    headers = ("tracepoint", *(row.name for row in rows))
    return page.table(title, Table(headers, lines, text=(0,)))


def _sides(side: PerSide | None) -> str:
    if side is None:
        return _NOTHING
    return f"{_per_ipi(side.sender)} + {_per_ipi(side.target)}"


def _observer(run: RunResult, rows: Sequence[ScenarioResult], page: Page) -> str:
    if run.observer is None:
        return ""
    modes = OLD_TRACED if run.schema_version == 1 else MODES[1:]
    headers = ("scenario", "", "off p50", *(h for mode in modes for h in (mode, "[interval]")))
    certain = run.observer.confidence > 0  # a single difference has no interval
    lines = []
    for row in rows:
        costs: Mapping[str, ObserverCost] = run.observer.costs.get(row.name, {})
        name = row.name
        for timing in TIMINGS:
            cost = costs.get(timing.name)
            if cost is not None:
                cells = _cost_cells(cost, modes, certain=certain)
                lines.append((name, timing.letter, *cells))
                name = ""
    if not lines:
        return ""
    title = (
        f"Observer cost: cycles that the probes add to the median {_ADDED[modes]}, in brackets the "
        "share of the off p50; "
    ) + (
        f"median and {run.observer.confidence:.1%} interval of {run.observer.repetitions} "
        "differences between repetitions that ran in turn"
        if certain
        else "from one difference between repetitions that ran in turn, which has no interval"
    )
    return page.table(title, Table(headers, lines, text=(0, 1), keys=3, together=(4, 6)))


def _cost_cells(cost: ObserverCost, modes: Sequence[Mode], *, certain: bool) -> tuple[str, ...]:
    def cells(difference: PairedDifference | None) -> tuple[str, str]:
        if difference is None:
            return _NOTHING, _NOTHING
        share = difference.median / cost.off_p50 if cost.off_p50 else 0.0
        return (
            f"{difference.median:+d} ({share:+.1%})",
            f"[{difference.low:+d}, {difference.high:+d}]" if certain else _NOTHING,
        )

    of_modes = (cell for mode in modes for cell in cells(getattr(cost, mode)))
    return (f"{cost.off_p50}", *of_modes)


def _exit_times(rows: Sequence[ScenarioResult], page: Page) -> str:
    headers = ("scenario", "vCPU", "reason", "exits", "unpaired", "p50", "p99", "share of D")
    any_without = any(time.without_weight for row in rows for time in row.exit_times or ()) or None
    lines = [
        (
            row.name,
            time.side,
            time.reason if time.without_weight in {True, any_without} else f"{time.reason} *",
            f"{time.exits}",
            f"{time.unpaired}",
            _NOTHING if time.p50_cycles is None else f"{time.p50_cycles}",
            _NOTHING if time.p99_cycles is None else f"{time.p99_cycles}",
            f"{time.share_of_deliver:.1%}",
        )
        for row in rows
        for time in row.exit_times or ()
    ]
    if not lines:
        reasons = _ordered((row.absent or {}).get("exit_times", "") for row in rows)
        why = ", ".join(r for r in reasons if r)
        return page.paragraph(f"Cycles from exit to entry: not measured, {why}")
    remarks = []
    if any_without:
        weight = "without the probes' weight, by the reasons that mode evidence recorded"
    else:
        weight = "with the weight of the probes that recorded them"
    title = (
        f"Cycles from exit to entry, {weight}; share of D: the sum of the cycles of these exits "
        "between an IPI's send and its handler, divided by the sum of D of the same IPIs (not by "
        "a p50)"
    )
    if any(line[2].endswith(" *") for line in lines):
        remarks = [("  *: ", "with the weight, which is not known in this scenario")]
    return page.table(title, Table(headers, lines, text=(0, 1, 2), keys=3), remarks)


def _paths(rows: Sequence[ScenarioResult], page: Page) -> str:
    traced = [row for row in rows if row.paths is not None]
    if not traced:
        return ""
    names = _ordered(name for row in traced for name in row.paths or ())
    posted = _ordered(name for row in traced for name in row.late_posts or ())
    headers = ("scenario", *names, "unmatched IPIs", "unmatched events", *posted)
    lines = [
        (
            row.name,
            *(f"{(row.paths or {}).get(name, 0.0):.1%}" for name in names),
            f"{row.unmatched_ipis}",
            f"{sum((row.unmatched_events or {}).values())}",
            *(f"{(row.late_posts or {}).get(name, 0)}" for name in posted),
        )
        for row in traced
    ]
    title = (
        "Paths, as host events prove them: shares of the traced IPIs (a send is one IPI for each "
        "of its targets)"
    )
    if posted:
        title += f"; late posts ({', '.join(posted)}: notifications to a CPU outside guest mode)"
    else:
        reasons = _ordered((row.absent or {}).get("late_posts", "") for row in traced)
        title += f" (late posts: not known, {', '.join(r for r in reasons if r)})"
    return page.table(title, Table(headers, lines, text=(0,)))


def _losses(run: RunResult) -> str:
    losses = run.losses
    ipis = f"{losses.incomplete_ipis} incomplete IPIs"
    if run.observer is None:
        return ipis
    overruns = sum(losses.ring_overruns.values())
    counted = [n for n in losses.recursion_misses.values() if n is not None]
    unknown = len(losses.recursion_misses) - len(counted)
    misses = f"{sum(counted)} recursion misses"
    if unknown:
        misses += f" (not counted by this kernel for {unknown} programs)"
    return f"{overruns} of {losses.events_seen} events lost in ring overruns, {misses}, {ipis}"


def _details(run: RunResult, page: Page) -> str:
    lines = [("version", f"ipitrace {run.ipitrace_version}, started {run.started_at}")]
    if run.guest.has("payload_sha256"):
        lines.append(("payload", f"sha256 {run.guest.payload_sha256}"))
    if run.guest.has("module_srcversion"):
        module = (
            f"ipitrace_storm {run.guest.module_version}, srcversion {run.guest.module_srcversion}"
        )
        lines.append(("module", module))
    lines.append(("pinning", run.host.pinning.why))
    if run.observer is not None:
        took = (
            f"loaded in {run.observer.setup_seconds:.3f} s, attached in "
            f"{run.observer.attach_seconds:.3f} s"
        )
        hooked = ", ".join(f"{name} ({how})" for name, how in run.observer.hooks.items())
        lines += [("BPF", took), ("watched", hooked)]
        lines += [("left out", f"{name}: {why}") for name, why in run.observer.left_out.items()]
    return page.lines((f"{label:<9}", text) for label, text in lines)


def _per_ipi(count: float) -> str:
    return "0" if count == 0 else f"{count:.2f}"


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
