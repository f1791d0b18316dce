# SPDX-License-Identifier: Apache-2.0
"""The options that `ipitrace compare` and `ipitrace ab` share."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from ipitrace.commands.formats import format_options
from ipitrace.render.formats import COMPARISON

GATES_EXAMPLE = """\
fail-on = ["deliver.p50:+5%", "exits:+0.1"]      # may get worse by this much
require = ["unicast-running:send.p50:-30%"]      # must get better by this much
allow = ["microcode"]                            # may differ
strict = true                                    # undecided is exit code 4
"""
"""Every key of a file of gates."""

EPILOG = "\b\nA file of gates, for --gates:\n" + "".join(
    f"  {line}\n" for line in GATES_EXAMPLE.splitlines()
)
"""The end of the help of a command that has --gates."""


@dataclass(frozen=True)
class ComparisonOptions:
    """The values of the options, by the names that click gives them."""

    fail_on: tuple[str, ...]
    require: tuple[str, ...]
    gates_file: Path | None
    strict: bool
    allow: tuple[str, ...]
    min_effect: tuple[str, ...]
    output_format: str
    output_file: Path | None
    github_summary: bool
    every: bool
    anchors: bool

    @classmethod
    def taken_from(cls, values: dict[str, Any]) -> "ComparisonOptions":
        """Take the shared options from all options of a command."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


_OPTIONS = (
    click.option(
        "--fail-on",
        multiple=True,
        metavar="GATE",
        help="Exit 1 when a metric gets worse by more than LIMIT. GATE is "
        "[SCENARIO:]METRIC:LIMIT, for instance deliver.p50:+5% or exits:+0.1. May be repeated. "
        "If there are gates, they alone decide the exit code. Without any gate, a worse "
        "headline metric gives exit code 1.",
    ),
    click.option(
        "--require",
        multiple=True,
        metavar="GATE",
        help="Exit 1 when a metric does not get better by at least LIMIT: deliver.p50:-30%, "
        "exits.sender:-0.5 or path.exitless:+0.9. A gate that cannot be decided fails only "
        "with --strict. May be repeated.",
    ),
    click.option(
        "--gates",
        "gates_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A TOML file with fail-on, require, allow and strict; an example is below.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Exit 4 when a gate could not be decided; without gates, when the verdict is "
        "inconclusive.",
    ),
    click.option(
        "--allow",
        multiple=True,
        metavar="KEY",
        help="Compare although KEY differs between the sides. May be repeated.",
    ),
    click.option(
        "--min-effect",
        multiple=True,
        metavar="SIZE",
        help="The smallest change that matters: 2% (of cycles), exits:0.05 (per IPI), "
        "paths:0.01 (of all IPIs); these are the defaults. May be repeated.",
    ),
    format_options(COMPARISON),
    click.option(
        "--output",
        "output_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write the output to FILE, and print only the verdict.",
    ),
    click.option(
        "--github-summary",
        is_flag=True,
        help="Also append Markdown to the file that $GITHUB_STEP_SUMMARY names.",
    ),
    click.option(
        "--all",
        "every",
        is_flag=True,
        help="Show every metric, not only the headline metrics and those that changed.",
    ),
    click.option(
        "--anchors",
        is_flag=True,
        help="Show figures that others published, separate from the measured ones.",
    ),
)


def comparison_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
