# SPDX-License-Identifier: Apache-2.0
"""A reader of tracefs `format` files: the offset of each column of a classic tracepoint."""

import re
from dataclasses import dataclass
from typing import Final

# field:unsigned int exit_reason;	offset:8;	size:4;	signed:0;
_FIELD: Final = re.compile(
    r"^\s*field:(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
    r"(?:[ \t]*signed:(?P<signed>\d+);)?[ \t]*\n",
    re.MULTILINE,
)
_NAME: Final = re.compile(r"(\w+)\s*(\[[^\]]*\])?$")


@dataclass(frozen=True)
class Column:
    """One column of a tracepoint's record: offset and size in bytes."""

    name: str
    offset: int
    size: int
    signed: bool

    @property
    def c_type(self) -> str | None:
        """The integer type of this size; None if the column is not a plain, aligned integer."""
        if self.size not in (1, 2, 4, 8) or self.offset % self.size:
            return None
        return f"{'s' if self.signed else 'u'}{8 * self.size}"


def parse_format(text: str) -> dict[str, Column]:
    """The columns of a `format` file by name; empty if the text is not such a file.

    Columns that every event has (`common_*`) are included.
    """
    columns: dict[str, Column] = {}
    for match in _FIELD.finditer(text):
        named = _NAME.search(match["declaration"].strip())
        if named is None:
            continue
        columns[named[1]] = Column(
            named[1], int(match["offset"]), int(match["size"]), (match["signed"] or "0") != "0"
        )
    return columns
