# SPDX-License-Identifier: Apache-2.0
"""--format, its short form --json, and how a document is printed."""

import contextlib
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ipitrace.base.console import output_width, say, say_json, say_styled, writes_unicode
from ipitrace.base.errors import ReaderLeftError, UsageError
from ipitrace.recording.result import RunResult
from ipitrace.render.formats import FORMATS, JSON, RUN, TABLE, Subject
from ipitrace.words.sections import SECTIONS

F = TypeVar("F", bound=Callable[..., Any])

_OPTION = "output_format"


def _format_option(subject: Subject) -> Callable[[F], F]:
    about = "; ".join(f"{name}: {FORMATS[name].about}" for name in subject.formats)
    return click.option(
        "--format",
        _OPTION,
        type=click.Choice(subject.formats),
        default=TABLE,
        show_default=True,
        help=f"What to print. {about}.",
    )


def format_options(subject: Subject) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --format and --json to a command, which gets `output_format`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_format(*, as_json: bool, output_format: str, **options: Any) -> Any:  # noqa: ANN401 - as click parsed them
            return command(output_format=_chosen(output_format, as_json=as_json), **options)

        short = click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
        return _format_option(subject)(short(with_format))

    return decorate


def _chosen(output_format: str, *, as_json: bool) -> str:
    """The format that both options ask for.

    Raises:
        UsageError: they contradict each other.
    """
    source = click.get_current_context().get_parameter_source(_OPTION)
    if not as_json:
        return output_format
    if output_format != JSON and source != ParameterSource.DEFAULT:
        raise UsageError(
            f"--json and --format {output_format} contradict each other.",
            "Give one of them.",
        )
    return JSON


def require_format(subject: Subject, output_format: str) -> None:
    """See that what an option makes of a command has this format, too.

    Raises:
        UsageError: it has not.
    """
    if output_format not in subject.formats:
        (command,) = subject.commands
        raise UsageError(
            f"'ipitrace {command}' has no format {output_format}.",
            f"It has: {', '.join(subject.formats)}.",
        )


def section_option(command: F) -> F:
    """Add --section to a command, which gets `sections`."""
    about = "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
    return click.option(
        "--section",
        "sections",
        multiple=True,
        type=click.Choice(tuple(SECTIONS)),
        help=f"Print these tables instead of the first screen; may be repeated. {about}. "
        "Formats: table, markdown.",
    )(command)


def print_document(text: str, output_format: str) -> None:
    """Print a document that ends with a line feed."""
    if output_format == JSON:
        say_json(text)
    else:
        say(text, end="")


def print_result(text: str, output_format: str) -> None:
    """As print_document(); that the reader of standard output has left is not an error."""
    with contextlib.suppress(ReaderLeftError):
        print_document(text, output_format)


def run_document(
    run: RunResult, output_format: str, sections: Collection[str], *, verbose: bool
) -> str:
    """A run as print_run() prints it here."""
    return RUN.render(
        output_format,
        run,
        sections=sections,
        verbose=verbose,
        width=output_width(),
        unicode=writes_unicode(),
    )


def print_run(text: str, output_format: str) -> None:
    """As print_document(), for a run, whose first screen is styled."""
    if output_format == TABLE:
        say_styled(text)
    else:
        print_document(text, output_format)
