# SPDX-License-Identifier: Apache-2.0
"""The columns, types and sizes that a recording's tables may have; see docs/recording.md."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from ipitrace.base.units import MIB


class Holds(Enum):
    """The type of a column's values."""

    INTEGER = "integer"  # of 64 bits at most
    TEXT = "text"
    TRUTH = "truth value"


MOST_TABLE_BYTES: Final = 4096 * MIB
MOST_ROWS: Final = 1 << 28
MOST_FOOTER_BYTES: Final = 16 * MIB
"""30 columns of 256 row groups take 1.2 MiB."""
MOST_GROUPS: Final = 4096
MOST_COLUMNS: Final = 64
MOST_VALUE_BYTES: Final = 16
"""The average size of a column's decompressed values may not exceed this; the widest type has 8."""
LONGEST_TEXT: Final = 4096
MOST_ROWS_READ: Final = 50_000
"""Rows that one query may find; an IPI has some tens of events."""

_PLACE: Final = {"scenario": Holds.TEXT, "repetition": Holds.INTEGER}
_COLUMNS: Final[Mapping[str, Mapping[str, Holds]]] = {
    "host_events": {
        **_PLACE,
        "kind": Holds.TEXT,
        **dict.fromkeys(("ts_ns", "tsc", "vcpu", "cpu", "arg", "word", "detail"), Holds.INTEGER),
    },
    "guest_ipis": {
        **_PLACE,
        "mode": Holds.TEXT,
        **dict.fromkeys(("seq", "sender", "target"), Holds.INTEGER),
    },
    "spans": {
        **_PLACE,
        "path": Holds.TEXT,
        "sequence": Holds.TEXT,
        "suspect": Holds.TRUTH,
        **dict.fromkeys(
            ("ipi", "seq", "sender", "target", "sender_exits", "target_exits"), Holds.INTEGER
        ),
    },
}
_STAMP: Final = re.compile(r"[a-z]{1,30}(_[a-z]{1,30}){0,4}_tsc")
_MAY_LACK: Final = frozenset({"vcpu", "detail", "sender_exits", "target_exits"})


def holds(table: str, column: str) -> Holds | None:
    """The type of a table's column in this version; None if there is no such column."""
    if column in _COLUMNS[table]:
        return _COLUMNS[table][column]
    return Holds.INTEGER if table != "host_events" and _STAMP.fullmatch(column) else None


def may_lack_values(column: str) -> bool:
    """Whether a value may be null (unknown). All stamps except the send's may be null."""
    return column in _MAY_LACK or (column.endswith("_tsc") and column != "send_tsc")
