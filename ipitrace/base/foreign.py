# SPDX-License-Identifier: Apache-2.0
r"""Text from other programs, escaped for terminals and logs.

Foreign text is, for example, the name of a VM, the output of a guest or of ssh, or a string of a
recording. It can contain escape sequences, which a terminal executes (ECMA-48, section 5),
controls that change the order of characters (Unicode Standard Annex 9), or invisible characters.
Each of these is replaced by its escape in Python's notation (``\x1b``), which is visible and has
no effect. Plain text is not changed.
"""

import dataclasses
import functools
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

_CUT: Final = "..."
_MARKS: Final = frozenset({"Mn", "Me"})  # drawn on the preceding character
_MOST_MARKS: Final = 2  # per character; more marks are drawn over the lines above

_NOT_SPACE: Final = re.compile(r"[\t\r]")
_NOT_ASCII: Final = re.compile(r"[^\n -~]")

# Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 15) that str.isprintable()
# reports as letters and marks, and U+2800, the empty braille pattern: all are invisible.
_INVISIBLE: Final = frozenset(
    {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
).union(range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0000, 0xE1000))


def plain(text: str, most_chars: int = 200) -> str:
    """`text` on one line: printable characters only, and at most `most_chars` of them.

    Line breaks and tabs are escaped, too. Truncated text ends in "...".
    """
    if len(text) <= most_chars and text.isascii() and text.isprintable():
        return text
    shown = _escaped(text[: most_chars + 1], keep="")
    if len(text) <= most_chars and sum(map(len, shown)) <= most_chars:
        return "".join(shown)
    room = most_chars - len(_CUT)
    kept = []
    for piece in shown:  # an escape is never split
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + _CUT


def plain_lines(text: str) -> str:
    """`text` of any length, with printable characters and line feeds only."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(_escaped(text, keep="\n"))


def plain_json(document: str) -> str:
    r"""A JSON document with the same values, in printable ASCII and line feeds only.

    Inside a string any character may be written as an escape (RFC 8259, section 7). Between
    values only white space can be unprintable; it is replaced by a space.
    """
    if document.isascii() and document.replace("\n", "").isprintable():
        return document
    return _NOT_ASCII.sub(_json_escape, _NOT_SPACE.sub(" ", document))


def plain_values(value: T, most_chars: int = 1000) -> T:
    """A copy of plain data in which every string, mapping keys included, is passed to plain().

    The strings in dataclasses, mappings, lists and tuples are escaped recursively. Other values,
    and members of an enumeration, which are always ipitrace's own, are not changed.
    """
    return map_strings(value, lambda text: plain(text, most_chars))


def map_strings(value: T, change: Callable[[str], str]) -> T:
    """A copy of plain data with every string in it changed; see plain_values()."""
    changed: Any = _map_strings(value, change)
    return cast("T", changed)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - any data
    kind: Any = type(value)
    if kind is str:
        return change(value)
    if kind is int:  # the most frequent type
        return value
    names = _field_names(kind)
    if names is not None:
        olds = [(name, getattr(value, name)) for name in names]
        news = {name: new for name, old in olds if (new := _map_strings(old, change)) is not old}
        return dataclasses.replace(value, **news) if news else value
    if isinstance(value, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if kind is tuple or kind is list:
        items = [_map_strings(one, change) for one in value]
        return value if all(map(operator.is_, items, value)) else kind(items)
    return value


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """The names of a dataclass's fields. None for any other type."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


def _json_escape(match: re.Match[str]) -> str:
    raw = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(raw[i : i + 2]):04x}" for i in range(0, len(raw), 2))


def _escaped(text: str, *, keep: str) -> list[str]:
    return [
        char if printable else char.encode("unicode_escape").decode("ascii")
        for char, printable in _split(text, keep=keep)
    ]


def _split(text: str, *, keep: str) -> list[tuple[str, bool]]:
    """Each character of `text`, and whether it may be printed unescaped."""
    found = []
    marks = _MOST_MARKS  # a mark at the beginning would be drawn on the character before the text
    for char in text:
        if char in keep:
            printable, marks = True, _MOST_MARKS
        elif unicodedata.category(char) in _MARKS:
            marks += 1
            printable = marks <= _MOST_MARKS and ord(char) not in _INVISIBLE
        else:
            printable = char.isprintable() and ord(char) not in _INVISIBLE
            marks = 0 if printable else _MOST_MARKS
        found.append((char, printable))
    return found
