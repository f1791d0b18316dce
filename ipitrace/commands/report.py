# SPDX-License-Identifier: Apache-2.0
"""`ipitrace report`: print a recording."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ipitrace.base.console import output_width, tell
from ipitrace.base.errors import UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.resources import example_dir
from ipitrace.commands.formats import (
    format_options,
    print_document,
    print_run,
    require_format,
    run_document,
    section_option,
)
from ipitrace.recording.reader import computing_with, read_rows, read_run, read_run_text
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import EventWeights
from ipitrace.render.formats import JSON, RUN, TIMELINE
from ipitrace.render.run.timeline import Timeline, window
from ipitrace.summary.single import ipi_without_weight
from ipitrace.words.scenarios import Mode

_EVENT_COLUMNS = ("tsc", "vcpu", "cpu", "kind", "arg", "word", "detail")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR", required=False)
@click.option("--example", is_flag=True, help="Use the recording that is part of ipitrace.")
@click.option(
    "--ipi",
    type=int,
    metavar="N",
    help="Print all events of IPI N (its number in the table spans). Format: table.",
)
@format_options(RUN)
@section_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Print all tables, and what was traced, and how."
)
def report(
    *,
    directory: Path | None,
    example: bool,
    ipi: int | None,
    output_format: str,
    sections: tuple[str, ...],
    verbose: bool,
) -> None:
    """Print the recording in DIR as 'ipitrace run' printed it. Needs no privilege.

    DIR can also be the path of run.json in it.
    """
    if (directory is None) != example:
        raise UsageError(
            "Exactly one of DIR and --example is needed.",
            "Give either the directory of a recording, or --example.",
        )
    if ipi is not None:
        require_format(TIMELINE, output_format)
    recording = directory or example_dir()
    run = read_run(recording)
    with computing_with(recording):
        if ipi is not None:
            text = _text_of_ipi(recording, run, ipi, output_format)
        elif output_format == JSON:  # run.json itself, whichever version wrote it
            text = read_run_text(recording)
        else:
            text = run_document(run, output_format, sections, verbose=verbose)
    if ipi is None:
        print_run(text, output_format)
    else:
        print_document(text, output_format)
    if not run.complete:
        tell(f"This recording is partial: {plain(run.failure or '', 1000)}")


def _text_of_ipi(recording: Path, run: RunResult, ipi: int, output_format: str) -> str:
    return TIMELINE.render(
        output_format,
        _timeline(recording, run, ipi),
        tsc_hz=run.clock.tsc_hz,
        emulator=run.emulator,
        width=output_width(),
    )


def _timeline(recording: Path, run: RunResult, ipi: int) -> Timeline:
    """Read all that is recorded of one IPI.

    Raises:
        UsageError: the recording has no spans, or none with that number.
    """
    near = read_rows(recording, run, "spans", between={"ipi": (ipi - 1, ipi + 1)})
    by_number = {row["ipi"]: row for row in near}
    if ipi not in by_number:
        raise UsageError(
            f"There is no IPI {ipi} in {recording}.",
            f"They are numbered from 0 to {run.tables['spans'].rows - 1}.",
        )
    span = by_number[ipi]
    storm = (span["scenario"], span["repetition"])
    before, after = (
        row if row is not None and (row["scenario"], row["repetition"]) == storm else None
        for row in (by_number.get(ipi - 1), by_number.get(ipi + 1))
    )
    first_tsc, last_tsc = window(span)
    events: list[dict[str, Any]] = []
    if "host_events" in run.tables:
        events = read_rows(
            recording,
            run,
            "host_events",
            _EVENT_COLUMNS,
            between={
                "repetition": (span["repetition"], span["repetition"]),
                "tsc": (first_tsc, last_tsc),
            },
            equal={"scenario": span["scenario"]},
        )
    weights = _weights(run, span)
    lighter = None if weights is None else ipi_without_weight(span, events, weights)
    return Timeline(span, before, after, events, lighter)


def _weights(run: RunResult, span: Mapping[str, Any]) -> EventWeights | None:
    """The weights of an IPI's events; None if they are not known, or other events were traced."""
    for row in run.scenarios:
        modes = {figures.order: figures.mode for figures in row.repetition_figures}
        if row.name == span["scenario"] and modes.get(span["repetition"]) == Mode.STAGES:
            corrected = row.stages and row.stages.corrected
            return corrected.weights if corrected else None
    return None
