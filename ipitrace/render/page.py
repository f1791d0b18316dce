# SPDX-License-Identifier: Apache-2.0
"""One document for a terminal and for a Markdown page: paragraphs, labelled lines and tables.

A renderer writes a document once, through a Page. The page decides how each part looks.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.render.grid import TIE, Rows, fill, table
from ipitrace.render.markdown import markdown_line, markdown_table

Labelled = Iterable[tuple[str, str]]
"""Lines of text, each after a label. A label ends with the spaces that align the texts."""


@dataclass(frozen=True)
class Table:
    """A table; grid.table() describes the fields that it takes.

    Attributes:
        headless: a terminal shows no names of columns.
    """

    headers: Sequence[str]
    rows: Rows
    text: Collection[int] = ()
    keys: int = 1
    together: Collection[int] = ()
    headless: bool = False


class Page(Protocol):
    """Where a document goes. All parts are returned as text, "" where there is nothing."""

    def heading(self, text: str) -> str:
        """The title of the whole document; a terminal shows none."""

    def paragraph(self, text: str) -> str:
        """One paragraph. Line breaks in `text` are kept."""

    def lines(self, labelled: Labelled) -> str:
        """Lines with labels; an empty label continues the line before."""

    def items(self, title: str, texts: Sequence[str]) -> str:
        """A list under its title; "" where the list is empty."""

    def table(self, title: str, shown: Table, remarks: Labelled = ()) -> str:
        """A table below its title, if that is not empty, and above lines with remarks."""


@dataclass(frozen=True)
class TextPage:
    """Text for a terminal or a log.

    Attributes:
        width: columns of the terminal.
    """

    width: int = PIPE_WIDTH

    def heading(self, _text: str) -> str:
        """Nothing: see Page."""
        return ""

    def paragraph(self, text: str) -> str:
        """See Page."""
        return fill(text, self.width) if text else ""

    def lines(self, labelled: Labelled) -> str:
        """See Page."""
        return "\n".join(fill(text, self.width, label) for label, text in labelled)

    def items(self, title: str, texts: Sequence[str]) -> str:
        """See Page."""
        filled = [fill(text, self.width, "  ", " " * 4) for text in texts]
        return "\n".join([self.paragraph(title), *filled]) if texts else ""

    def table(self, title: str, shown: Table, remarks: Labelled = ()) -> str:
        """See Page."""
        laid_out = table(
            () if shown.headless else shown.headers,
            shown.rows,
            text=shown.text,
            keys=shown.keys,
            together=shown.together,
            width=self.width,
        )
        parts = (self.paragraph(title), laid_out, self.lines(remarks))
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class MarkdownPage:
    """GitHub's Markdown. Every text is escaped here."""

    def heading(self, text: str) -> str:
        """See Page."""
        return f"### {markdown_line(text)}"

    def paragraph(self, text: str) -> str:
        """See Page."""
        return "\n".join(map(markdown_line, text.split("\n"))) if text else ""

    def lines(self, labelled: Labelled) -> str:
        """See Page."""
        return "\n".join(_item(label.strip(), text) for label, text in labelled)

    def items(self, title: str, texts: Sequence[str]) -> str:
        """See Page."""
        listed = self.lines(("", text) for text in texts)
        return f"{self.paragraph(title)}\n\n{listed}" if texts else ""

    def table(self, title: str, shown: Table, remarks: Labelled = ()) -> str:
        """See Page."""
        marked_up = markdown_table(shown.headers, shown.rows, shown.text)
        parts = (self.paragraph(title), marked_up, self.lines(remarks))
        return "\n\n".join(part for part in parts if part)


def _item(label: str, text: str) -> str:
    line = markdown_line(text.replace(TIE, " "))
    return f"- **{markdown_line(label.rstrip(':'))}:** {line}" if label else f"- {line}"


def document(sections: Iterable[str]) -> str:
    """The sections that are not empty, a blank line between two."""
    return "\n\n".join(section for section in sections if section) + "\n"
