# SPDX-License-Identifier: Apache-2.0
"""Shared by `ipitrace compare` and `ipitrace ab`; imported late, since scipy takes a second."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ipitrace.base.console import PIPE_WIDTH, on_terminal, output_width
from ipitrace.base.errors import ExitCode, HostError, UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.output import append_file, replace_file
from ipitrace.commands.comparison_options import ComparisonOptions
from ipitrace.commands.formats import print_result
from ipitrace.compare import Recordings, Settings, compare, exit_code
from ipitrace.compare.anchors import read_anchors
from ipitrace.compare.fingerprint import check_allowed
from ipitrace.compare.gates import GateFile, named_counts, parse_gate, read_gates
from ipitrace.compare.model import Comparison, GateKind, GateResult, MinimumEffect
from ipitrace.compare.versus import parse_pair
from ipitrace.render.compare.documents import Compared
from ipitrace.render.formats import COMPARISON, TABLE

_MOST_SAID = 2000  # characters of a sentence
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

NamedSide = tuple[str, Recordings]
"""The recordings of a side, after its name."""


def settings_from(
    options: ComparisonOptions,
    *,
    scenarios: tuple[str, ...] = (),
    pairs: tuple[str, ...] = (),
    interleaved: bool = False,
) -> Settings:
    """The settings that the options ask for. All options are checked before anything is done.

    Raises:
        UsageError: an option is wrong.
    """
    from_file = read_gates(options.gates_file) if options.gates_file else GateFile()
    gates = (
        *(parse_gate(spec) for spec in (*from_file.fail_on, *options.fail_on)),
        *(parse_gate(spec, GateKind.REQUIRE) for spec in (*from_file.require, *options.require)),
    )
    named_counts(gates)
    allow = frozenset((*from_file.allow, *options.allow))
    check_allowed(allow)
    if options.github_summary and not os.environ.get(SUMMARY_VARIABLE):
        raise UsageError(
            f"--github-summary needs ${SUMMARY_VARIABLE}, which is not set.",
            "GitHub Actions sets it in every step. Elsewhere, do not give the option.",
        )
    return Settings(
        gates=gates,
        minimum=parse_minimum(options.min_effect),
        allow=allow,
        scenarios=scenarios,
        pairs=tuple(map(parse_pair, pairs)),
        interleaved=interleaved,
        strict=options.strict or from_file.strict,
    )


def compare_and_tell(
    base: NamedSide, others: Sequence[NamedSide], settings: Settings, options: ComparisonOptions
) -> ExitCode:
    """Compare every other side with the base, print the result, and return the exit code.

    Raises:
        UsageError, HostError, MeasurementError: see compare().
    """
    comparisons = tuple(compare(base[1], side, (base[0], name), settings) for name, side in others)
    compared = _compared(base, others, comparisons, options, settings)
    to_terminal = options.output_file is None and on_terminal()
    text = COMPARISON.render(
        options.output_format,
        compared,
        every=options.every,
        width=output_width() if to_terminal else PIPE_WIDTH,
        whole_verdict=not to_terminal,
    )
    if options.output_file is None:
        print_result(text, options.output_format)
    else:
        _write(options.output_file, text, append=False)
        for comparison in comparisons:
            print_result(plain(comparison.sentence, _MOST_SAID) + "\n", TABLE)
    if options.github_summary:
        page = COMPARISON.render("markdown", compared, every=options.every)
        _write(Path(os.environ[SUMMARY_VARIABLE]), page, append=True)
    return exit_code(comparisons, strict=settings.strict)


def _compared(
    base: NamedSide,
    others: Sequence[NamedSide],
    comparisons: tuple[Comparison, ...],
    options: ComparisonOptions,
    settings: Settings,
) -> Compared:
    """The result with the recordings of all sides; those that were judged have their gates."""
    runs = list(base[1])
    gates: list[tuple[GateResult, ...]] = [()] * len(runs)
    for (_name, side), comparison in zip(others, comparisons, strict=True):
        runs += side
        gates += [comparison.gates] * len(side)
    anchors = read_anchors() if options.anchors else ()
    return Compared(comparisons, anchors, runs, gates, settings.strict)


def parse_minimum(sizes: Sequence[str]) -> MinimumEffect:
    """Read --min-effect.

    Raises:
        UsageError: one of them is not a size.
    """
    minimum = MinimumEffect()
    for size in sizes:
        match = re.fullmatch(r"(?:(cycles|exits|paths):)?(\d{1,9}(?:\.\d{1,9})?)(%?)", size)
        kind = (match[1] or "cycles") if match else ""
        if match is None or (kind == "cycles") != bool(match[3]) or not float(match[2]):
            raise UsageError(
                f"--min-effect {size[:60]} is not the size of a change.",
                "Give 2% for cycles, exits:0.05 or paths:0.01.",
            )
        minimum = replace(minimum, **{kind: float(match[2]) / (100 if match[3] else 1)})
    return minimum


def _write(path: Path, text: str, *, append: bool) -> None:
    try:
        if append:
            append_file(path, text)
        else:
            replace_file(path, text)
    except OSError as error:
        raise HostError(
            f"{path} cannot be written: {error.strerror}.", "Choose another file."
        ) from error
