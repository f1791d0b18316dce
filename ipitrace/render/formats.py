# SPDX-License-Identifier: Apache-2.0
"""Every output format, which commands have it, and the function that writes it: one table.

--format, --help and the table of docs/output.md are made from it, or checked against it. A
renderer is imported when it is called, so that the help does not wait for it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

TABLE: Final = "table"
JSON: Final = "json"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as --format spells it.
        about: what it is.
        written: how text from outside ipitrace is written in it.
    """

    name: str
    about: str
    written: str


FORMATS: Final = {
    known.name: known
    for known in (
        Format(
            TABLE,
            "text for a person; as wide as the terminal, 100 columns in a pipe or a file",
            "characters that are not printable are escaped",
        ),
        Format(
            JSON,
            "one document with all values, for programs",
            "ASCII; other characters are JSON escapes",
        ),
        Format(
            "markdown",
            "the tables in GitHub's Markdown",
            "as in a table; markup and HTML are escaped, links and mentions are split",
        ),
        Format(
            "csv",
            "rows with one line of column names",
            "as in a table; a cell that a spreadsheet would evaluate begins with '",
        ),
        Format(
            "openmetrics",
            "gauges for a collector, such as the textfile collector of node_exporter",
            "as in a table; label values are escaped",
        ),
        Format(
            "junit",
            "test cases in JUnit XML, for the test report of a CI system",
            "as in a table; XML characters are escaped",
        ),
    )
}


@dataclass(frozen=True)
class Renderer:
    """A function that writes one format.

    Attributes:
        function: its module below ipitrace.render, a colon and its name.
        options: the names of the options of the command that it takes.
    """

    function: str
    options: frozenset[str]

    def load(self) -> Callable[..., str]:
        """Import the function."""
        module, _colon, name = self.function.partition(":")
        function: Callable[..., str] = getattr(
            importlib.import_module(f"ipitrace.render.{module}"), name
        )
        return function


@dataclass(frozen=True)
class Subject:
    """What commands print, and in which formats.

    Attributes:
        commands: the names of the commands.
        renderers: by the name of the format.
    """

    commands: tuple[str, ...]
    renderers: Mapping[str, Renderer]

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of the formats, in the order of FORMATS."""
        return tuple(name for name in FORMATS if name in self.renderers)

    def render(self, output_format: str, data: object, **options: Any) -> str:  # noqa: ANN401
        """The whole document; of `options` the renderer gets those that it takes."""
        renderer = self.renderers[output_format]
        taken = {name: value for name, value in options.items() if name in renderer.options}
        return renderer.load()(data, **taken)


def _by(function: str, *options: str) -> Renderer:
    return Renderer(function, frozenset(options))


RUN: Final = Subject(
    ("run", "report"),
    {
        TABLE: _by("run.screen:render_screen", "sections", "verbose", "width", "unicode"),
        JSON: _by("run.json:render_json"),
        "markdown": _by("run.tables:render_markdown", "sections", "verbose"),
        "csv": _by("run.csv:render_csv"),
        "openmetrics": _by("run.openmetrics:render_openmetrics"),
        "junit": _by("run.junit:render_junit"),
    },
)
COMPARISON: Final = Subject(
    ("compare", "ab"),
    {
        TABLE: _by("compare.documents:table", "every", "width", "whole_verdict"),
        JSON: _by("compare.documents:json"),
        "markdown": _by("compare.documents:markdown", "every"),
        "csv": _by("compare.documents:csv"),
        "openmetrics": _by("compare.documents:openmetrics"),
        "junit": _by("compare.documents:junit"),
    },
)
VMS: Final = Subject(
    ("list",),
    {
        TABLE: _by("list:render_list", "width"),
        JSON: _by("list:render_list_json"),
        "markdown": _by("list:render_list_markdown"),
        "csv": _by("list:render_list_csv"),
    },
)
EXAMINATION: Final = Subject(
    ("doctor",),
    {
        TABLE: _by("doctor:render_examination", "width"),
        JSON: _by("doctor:render_doctor_json"),
        "markdown": _by("doctor:render_doctor_markdown"),
        "csv": _by("doctor:render_doctor_csv"),
        "openmetrics": _by("doctor:render_doctor_openmetrics"),
        "junit": _by("doctor:render_doctor_junit"),
    },
)
OFFERS: Final = Subject(
    ("scenarios",),
    {
        TABLE: _by("scenarios:render_scenarios", "width"),
        JSON: _by("scenarios:render_scenarios_json"),
        "markdown": _by("scenarios:render_scenarios_markdown"),
        "csv": _by("scenarios:render_scenarios_csv"),
    },
)
PREVIEW: Final = Subject(
    ("run --dry-run",),
    {
        TABLE: _by("preview:render_preview", "width"),
        JSON: _by("preview:render_preview_json"),
    },
)
TIMELINE: Final = Subject(
    ("report --ipi",),
    {TABLE: _by("run.timeline:render_timeline", "tsc_hz", "emulator", "width")},
)
SENDERS: Final = Subject(
    ("guest senders",),
    {
        TABLE: _by("senders:render_senders", "width"),
        JSON: _by("senders:render_senders_json"),
        "markdown": _by("senders:render_senders_markdown"),
        "csv": _by("senders:render_senders_csv"),
    },
)
INTERVAL: Final = Subject(
    ("watch",),
    {
        TABLE: _by("watch.text:render_interval", "width", "height"),
        JSON: _by("watch.json:render_json"),
    },
)

SUBJECTS: Final = (
    *(RUN, PREVIEW, TIMELINE, COMPARISON, VMS, EXAMINATION, OFFERS, SENDERS, INTERVAL),
)
"""Everything that a command with --format prints."""
