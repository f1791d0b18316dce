# SPDX-License-Identifier: Apache-2.0
"""GitHub's Markdown: tables, and foreign text that has no effect there.

Foreign text becomes no markup, HTML, link, image or table cell (CommonMark 0.31, section 2.4:
a backslash escapes any ASCII punctuation). GitHub also searches the text for mentions,
references and bare addresses, escaped or not. An empty HTML comment, which is not shown,
splits them.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final

from tabulate import tabulate

from ipitrace.base.foreign import plain
from ipitrace.render.grid import TIE, Rows

_MARKUP: Final = re.compile(r"([\\`*_\[\]<>|&~])")
_PART: Final = "<!-- -->"
# user@host and @user; #12 and GH-12; scheme: and www.
_LOOKED_FOR: Final = re.compile(
    r"(@|#(?=\d)|\bgh-(?=\d)|\w:(?=//)|\b(?:mailto|xmpp):|\bwww(?=\.))", re.IGNORECASE
)
# A line that begins so becomes a heading, a list or a rule (sections 4.1 to 5.2).
_BEGINS_BLOCK: Final = re.compile(r"\s*(\d{0,9})([-+#=.)])")
_MOST_LINE_CHARS: Final = 4000


def markdown(text: str, most_chars: int = 1000) -> str:
    """`text` as plain() makes it, for a place inside a line of Markdown."""
    escaped = _MARKUP.sub(r"\\\1", plain(text, most_chars))
    return _LOOKED_FOR.sub(rf"\1{_PART}", escaped)


def markdown_line(text: str) -> str:
    """`text` for a whole line of Markdown: a paragraph or an item of a list."""
    return begins_line(markdown(text.strip(), _MOST_LINE_CHARS))


def begins_line(escaped: str) -> str:
    """Text that markdown() has escaped, for the beginning of a line."""
    found = _BEGINS_BLOCK.match(escaped)
    return f"{found[1]}\\{escaped[found.start(2) :]}" if found else escaped.lstrip()


def markdown_table(headers: Sequence[str], rows: Rows, text: Collection[int] = ()) -> str:
    """A table; every cell and name is escaped.

    Args:
        headers: the names of the columns.
        rows: of as many cells.
        text: the columns that hold text; they are aligned to the left, all others to the right.
    """
    escaped = [[_cell(cell) for cell in row] for row in rows]
    return escaped_table([_cell(name) for name in headers], escaped, text)


def escaped_table(headers: Sequence[str], rows: Rows, text: Collection[int] = ()) -> str:
    """As markdown_table(), for cells that markdown() has escaped already."""
    align = ["left" if i in text else "right" for i in range(len(headers))]
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _cell(text: str) -> str:
    return markdown(text.replace(TIE, " ").replace("\n", " "))
