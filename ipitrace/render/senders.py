# SPDX-License-Identifier: Apache-2.0
"""The senders of a guest's IPIs in each format."""

import json
from collections.abc import Iterator

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.render.csv import csv_text
from ipitrace.render.page import MarkdownPage, Page, Table, TextPage, document
from ipitrace.senders.model import TO_MASK, Method, Senders, Source, missing

_MOST_ROWS = 20
_NOTHING = "-"
_RESCHEDULE = "(reschedule)"
_COLUMNS = (
    *("tracepoint", "method", "callsite", "callback", "count", "per_s", "share"),
    "targets_per_send",
)


def render_senders(senders: Senders, width: int = PIPE_WIDTH) -> str:
    """A table for each tracepoint, as text of `width` columns."""
    return _render(senders, TextPage(width))


def render_senders_markdown(senders: Senders) -> str:
    """The same as Markdown."""
    return _render(senders, MarkdownPage())


def render_senders_json(senders: Senders) -> str:
    """All values as one JSON document."""
    return json.dumps(senders.to_dict(), indent=2) + "\n"


def render_senders_csv(senders: Senders) -> str:
    """One row for each call site and callback; an unknown value is empty."""
    rows = (
        {"tracepoint": source["tracepoint"], "method": source["method"], **sender}
        for source in senders.to_dict()["sources"]
        for sender in source["senders"]
    )
    return csv_text(
        _COLUMNS,
        ({name: "" if row[name] is None else str(row[name]) for name in _COLUMNS} for row in rows),
    )


def _render(senders: Senders, page: Page) -> str:
    senders = plain_values(senders)
    shown = [source for source in senders.sources if source.method is not None]
    head = f"IPI senders of Linux {senders.kernel}, {senders.duration_s:.2f} s"
    return document(
        [
            page.heading("IPI senders"),
            page.paragraph(head),
            *(_section(senders, source, page) for source in shown),
            page.lines(("note: ", note) for note in _notes(senders)),
        ]
    )


def _section(senders: Senders, source: Source, page: Page) -> str:
    rate = senders.rate(source, source.count)
    title = f"{source.tracepoint.name}, {source.tracepoint.meaning}: {source.count:,}"
    title += "" if rate is None else f", {rate:,.1f}/s"
    masks = source.tracepoint == TO_MASK
    headers = ["call site", "callback", "count", "per s", "share"]
    rows = []
    for sender in source.senders[:_MOST_ROWS]:
        row = [
            sender.callsite,
            sender.callback or _RESCHEDULE,
            f"{sender.count:,}",
            _number(senders.rate(source, sender.count)),
            f"{100 * sender.count / source.count:.1f} %",
        ]
        rows.append([*row, _number(sender.targets)] if masks else row)
    if masks:
        headers.append("targets per send")
    if not rows:
        return page.paragraph(title)
    more = source.senders[_MOST_ROWS:]
    remarks = []
    if more:
        remarks.append(f"({len(more)} more: {sum(sender.count for sender in more):,})")
    if source.uncounted:
        remarks.append(f"({source.uncounted:,} of call sites that the histogram had no room for)")
    return page.table(title, Table(headers, rows, text=(0, 1)), (("", line) for line in remarks))


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.1f}"


def _notes(senders: Senders) -> Iterator[str]:
    recorded = [source for source in senders.sources if source.method is Method.RECORDS]
    if recorded:
        names = ", ".join(source.tracepoint.name for source in recorded)
        yield (
            f"{names}: counted from a ring buffer, because the guest's kernel has no histogram "
            "triggers (CONFIG_HIST_TRIGGERS)"
        )
        if senders.lost_records:
            yield (
                f"the buffer had no room for {senders.lost_records:,} events: counts and shares "
                "are those of the first events, and rates are not known; use a shorter --duration"
            )
    elif senders.lost_records:
        yield "targets per send are those of the first sends, which fitted into the ring buffer"
    absent = [source.tracepoint for source in senders.sources if source.method is None]
    for text in missing(absent):
        yield f"not in this kernel: {text}"
