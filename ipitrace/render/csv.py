# SPDX-License-Identifier: Apache-2.0
"""CSV for programs and spreadsheets: the one writer of every CSV document."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ipitrace.base.foreign import plain

# A spreadsheet evaluates a cell that begins with one of these, of full width, too.
_FORMULA: Final = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_MOST_CHARS: Final = 1000


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """The rows under the names of the columns; a column that a row lacks is empty there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(map(_cell, columns)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({_cell(key): _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(text: str) -> str:
    """The text as plain() makes it, which no spreadsheet evaluates; a number stays one."""
    text = plain(text, _MOST_CHARS)
    if not text.lstrip().startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
