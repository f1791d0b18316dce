# SPDX-License-Identifier: Apache-2.0
"""Tables and paragraphs as wide as the terminal, and no wider.

Columns get the width they need. Where that is more than there is, text wraps at spaces, the
widest column first, then names of columns do; numbers never do. What is too wide even so
becomes several tables, each with the key columns. A word is broken only if it is longer than
its column can be, after punctuation where it has some.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Final

from ipitrace.console import PIPE_WIDTH

_GAP: Final = 2  # between columns
_WORD_LIMITS: Final = (32, 24, 16, 8)  # a longer word may be broken; the first that helps
_CUT: Final = "..."
_PUNCTUATION: Final = ".-_/:,>"
_LEAST_PARAGRAPH: Final = 20

TIE: Final = "\0"
"""Stands for a space that no line is broken at; plain text has none."""

Rows = Sequence[Sequence[str]]


def columns_of(text: str) -> int:
    """The columns of a terminal that a line takes: an ideograph two, a combining mark none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - few need it

    return cell_len(text.replace(TIE, " "))


def clipped(text: str, width: int) -> str:
    """The beginning of a line, of at most `width` columns."""
    return text[: _fitting(text, width)]


def _fitting(text: str, width: int) -> int:
    """How many of its characters, from the first on, take at most `width` columns."""
    if text.isascii():
        return min(len(text), width)
    for i, char in enumerate(text):
        width -= columns_of(char)
        if width < 0:
            return i
    return len(text)


def table(
    headers: Sequence[str],
    rows: Rows,
    *,
    text: Collection[int] = (),
    keys: int = 1,
    together: Collection[int] = (),
    width: int = PIPE_WIDTH,
) -> str:
    """Rows under their headers and a line, or under nothing where there are no headers.

    Args:
        headers: the columns' names; cells and names may have line breaks of their own.
        rows: of as many cells.
        text: the columns that hold text: to the left, and they wrap. All others are to the right.
        keys: so many columns begin every part of a table that is too wide for one.
        together: columns that stay in one part with the column before.
        width: of the terminal, in columns.
    """
    whole = [headers, *rows] if headers else rows
    if not whole:
        return ""
    units = _units(len(whole[0]), keys, together)
    return "\n\n".join(
        _part(
            [[row[i] for i in columns] for row in whole],
            widths,
            [i in text for i in columns],
            ruled=bool(headers),
        )
        for columns, widths in _parts(whole, text, units, width, headed=bool(headers))
    )


def dense(
    headers: Sequence[str],
    rows: Rows,
    *,
    text: Collection[int] = (),
    width: int = PIPE_WIDTH,
    cut: bool = False,
) -> list[str]:
    """The lines of a table without a rule, fast: `watch` makes one of thousands of rows a second.

    One table whatever the width; see table() for the arguments. With `cut` a row is a line:
    what is too long for its column loses its middle, since names differ in their ends, too.
    """
    whole = [tuple(headers), *rows]
    # len() is much faster, and right for nearly all of it.
    wanted = [
        max(map(len if all(map(str.isascii, column)) else columns_of, column))
        for column in zip(*whole, strict=True)
    ]
    widths = fitted(wanted, wanted, width)
    narrow = widths is None
    if widths is None:
        units = [list(range(len(headers)))]
        ((_, widths),) = _parts(whole, text, units, width, headed=True)
    lines: Rows = whole
    if narrow and cut:
        lines = [tuple(map(_cut, row, widths)) for row in whole]
    elif narrow:
        lines = [line for row in whole for line in _lines(row, widths)]
    left = [i in text for i in range(len(widths))]
    form = (" " * _GAP).join(
        f"%{'-' if to_left else ''}{n}s" for n, to_left in zip(widths, left, strict=True)
    )
    return [
        form % tuple(line) if all(map(str.isascii, line)) else _aligned(line, widths, left)
        for line in lines
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    """A line of a table."""
    padded = []
    for cell, width, to_left in zip(cells, widths, left, strict=True):
        space = " " * (width - columns_of(cell))
        padded.append(cell + space if to_left else space + cell)
    return (" " * _GAP).join(padded)


def _cut(cell: str, width: int) -> str:
    if columns_of(cell) <= width:
        return cell
    kept = max(width - len(_CUT), 0)
    end = clipped(cell[::-1], kept // 2)[::-1]
    return clipped(cell, kept - kept // 2) + _CUT[:width] + end


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[Sequence[str]]:
    """A row as lines of cells that are no wider than their columns."""
    if all(columns_of(cell) <= width for cell, width in zip(row, widths, strict=True)):
        return [row]
    return list(itertools.zip_longest(*_wrapped_row(row, widths, " "), fillvalue=""))


def _wrapped_row(row: Sequence[str], widths: Sequence[int], indent: str) -> list[list[str]]:
    """Each cell's lines; in the first column `indent` begins all but a paragraph's first.

    So a stranger's words never begin a line of the output.
    """
    first, *others = zip(row, widths, strict=True)
    lines: list[str] = []
    for paragraph in first[0].split("\n"):
        fits = columns_of(paragraph) <= first[1]
        start, *rest = [paragraph] if fits else wrapped(paragraph, max(first[1] - 1, 1))
        lines += [start, *(indent + line for line in rest)]
    return [lines, *(wrapped(cell, width) for cell, width in others)]


def fill(text: str, width: int, first: str = "", rest: str | None = None) -> str:
    """A paragraph: lines of at most `width` columns, broken at spaces.

    Args:
        text: whose line breaks are kept.
        width: of the terminal, in columns.
        first: begins the first line.
        rest: begins the others; unless given, as many spaces as `first` is wide, or two: a
            stranger's words never begin a line.
    """
    indent = " " * (columns_of(first) or 2) if rest is None else rest
    room = max(width - max(columns_of(first), columns_of(indent)), _LEAST_PARAGRAPH)
    lines = wrapped(text, room)
    return "\n".join(
        ((indent if i else first) + line).rstrip() for i, line in enumerate(lines)
    ).replace(TIE, " ")


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, at least one; breaks in the text are kept."""
    if columns_of(text) <= width and "\n" not in text:
        return [text]
    return [line for paragraph in text.split("\n") for line in _wrapped(paragraph, width)]


def fitted(
    wanted: Sequence[int], least: Sequence[int], room: int, gap: int = _GAP
) -> list[int] | None:
    """Widths of columns that fit into `room`, the widest lowered first; None if none do."""
    room -= gap * (len(wanted) - 1)
    if sum(wanted) <= room:
        return list(wanted)
    if sum(least) > room:
        return None
    low, high = 0, max(wanted)  # the greatest level that fits, by bisection
    while low < high:
        level = (low + high + 1) // 2
        fits = sum(_levelled(wanted, least, level)) <= room
        low, high = (level, high) if fits else (low, level - 1)
    widths = _levelled(wanted, least, low)
    spare = room - sum(widths)
    for i, want in enumerate(wanted):
        more = min(want - widths[i], spare, 1)
        widths[i] += more
        spare -= more
    return widths


def _levelled(wanted: Sequence[int], least: Sequence[int], level: int) -> list[int]:
    return [max(few, min(want, level)) for want, few in zip(wanted, least, strict=True)]


def _units(n: int, keys: int, together: Collection[int]) -> list[list[int]]:
    """The columns that cannot be parted: first the keys."""
    units = [list(range(min(keys, n)))]
    for i in range(len(units[0]), n):
        if i in together and len(units) > 1:
            units[-1].append(i)
        else:
            units.append([i])
    return units


def _parts(
    whole: Rows, text: Collection[int], units: Sequence[Sequence[int]], width: int, *, headed: bool
) -> list[tuple[list[int], list[int]]]:
    """For each table that it takes: which columns, and how wide each is."""
    n = len(whole[0])
    wanted = [
        max(columns_of(line) for row in whole for line in row[i].split("\n")) for i in range(n)
    ]
    columns = [[row[i] for row in whole] for i in range(n)]
    undivided = [[i for unit in units for i in unit]]
    tried = [(undivided, limit) for limit in _WORD_LIMITS[:2]]  # rather than two tables
    tried += [(list(map(list, units)), limit) for limit in _WORD_LIMITS]
    for groups, limit in tried:
        least = [
            _least(column, wraps=i in text, headed=headed, limit=limit)
            for i, column in enumerate(columns)
        ]
        least[0] = min(least[0] + 1, wanted[0])  # for its indent
        parts = _split(wanted, least, groups, width)
        if parts is not None:
            return parts
    each = max((width - _GAP * (n - 1)) // n, 1)  # a stranger's making: everything is broken
    return [(list(range(n)), [min(want, each) for want in wanted])]


def _split(
    wanted: Sequence[int], least: Sequence[int], units: Sequence[Sequence[int]], width: int
) -> list[tuple[list[int], list[int]]] | None:
    """As few parts as can be, each beginning with the first unit; None if a unit is too wide."""

    def fit(columns: Sequence[int]) -> list[int] | None:
        return fitted([wanted[i] for i in columns], [least[i] for i in columns], width)

    first = list(units[0])
    parts: list[list[int]] = [first]
    for unit in units[1:]:
        if fit([*parts[-1], *unit]) is not None:
            parts[-1] = [*parts[-1], *unit]
        else:
            parts.append([*first, *unit])
    found = [(columns, fit(columns)) for columns in parts]
    whole = [(columns, widths) for columns, widths in found if widths is not None]
    return whole if len(whole) == len(found) else None


def _least(cells: Sequence[str], *, wraps: bool, headed: bool, limit: int) -> int:
    """The least width of a column: no word of a text is broken, and no number."""
    words = [word for cell in (cells if wraps else cells[:headed]) for word in cell.split()]
    longest = min(max(map(columns_of, words), default=1), limit)
    if wraps:
        return max(longest, 1)
    numbers = [line for cell in cells[headed:] for line in cell.split("\n")]
    return max(longest, *map(columns_of, numbers), 1)


def _part(whole: Rows, widths: Sequence[int], text: Sequence[bool], *, ruled: bool) -> str:
    lines: list[list[str]] = []
    for n, row in enumerate(whole):
        cells = _wrapped_row(row, widths, TIE)
        height = max(map(len, cells))
        # A column's name stands on its line, a cell at the top of its row.
        above = [height - len(cell) if ruled and n == 0 else 0 for cell in cells]
        lines += [
            [
                cell[i - up] if 0 <= i - up < len(cell) else ""
                for cell, up in zip(cells, above, strict=True)
            ]
            for i in range(height)
        ]
        if ruled and n == 0:
            lines.append(["-" * width for width in widths])
    lines = [[cell.strip() for cell in line] for line in lines]
    taken = [max(map(columns_of, column)) for column in zip(*lines, strict=True)]
    shown = [_aligned(line, taken, text).replace(TIE, " ").rstrip() for line in lines]
    return "\n".join(shown)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        room = columns_of(word)
        if line and columns_of(line) + 1 + room <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line.rstrip())
        while room > width:
            fits = max(_fitting(word, width), 1)
            at = max(word.rfind(mark, 0, fits) for mark in _PUNCTUATION) + 1 or fits
            lines.append(word[:at])
            room -= columns_of(word[:at])
            word = word[at:]  # noqa: PLW2901 - what is left of it
        line = word
    lines.append(line)
    return lines
