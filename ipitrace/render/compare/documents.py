# SPDX-License-Identifier: Apache-2.0
"""All that one call of `compare` or `ab` prints, in each format."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.compare.anchors import Anchor
from ipitrace.compare.model import Comparison, GateResult, to_json
from ipitrace.recording.result import RunResult
from ipitrace.render.compare.csv import render_csv
from ipitrace.render.compare.junit import render_junit
from ipitrace.render.compare.openmetrics import render_openmetrics
from ipitrace.render.compare.tables import render_anchors, render_comparison


@dataclass(frozen=True)
class Compared:
    """Every other side, compared with the base.

    Attributes:
        comparisons: one for each other side.
        anchors: figures that others published; shown as a table and in JSON.
        runs: the recordings of all sides, each after its name.
        gates: for each of `runs`, those of the comparison that it is part of.
        strict: a metric that could not be decided fails.
    """

    comparisons: tuple[Comparison, ...]
    anchors: tuple[Anchor, ...]
    runs: Sequence[tuple[str, RunResult]]
    gates: Sequence[Sequence[GateResult]]
    strict: bool


def table(
    compared: Compared,
    *,
    every: bool = False,
    width: int = PIPE_WIDTH,
    whole_verdict: bool = True,
) -> str:
    """Text of `width` columns. Anchors are first, so that the last line is the verdict."""
    parts = [render_anchors(compared.anchors, width=width)] if compared.anchors else []
    parts += [
        render_comparison(one, every=every, width=width, whole_verdict=whole_verdict)
        for one in compared.comparisons
    ]
    return "\n".join(parts)


def markdown(compared: Compared, *, every: bool = False) -> str:
    """The same as Markdown."""
    parts = [render_anchors(compared.anchors, markdown=True)] if compared.anchors else []
    parts += [render_comparison(one, every=every, markdown=True) for one in compared.comparisons]
    return "\n".join(parts)


def json(compared: Compared) -> str:
    """One document, as schemas/compare.schema.json describes it."""
    return to_json(compared.comparisons, tuple(map(asdict, compared.anchors)))


def csv(compared: Compared) -> str:
    """One row for each recording."""
    return render_csv(compared.runs, compared.gates)


def openmetrics(compared: Compared) -> str:
    """One exposition."""
    return render_openmetrics(compared.comparisons)


def junit(compared: Compared) -> str:
    """One document."""
    return render_junit(compared.comparisons, strict=compared.strict)
