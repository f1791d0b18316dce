# SPDX-License-Identifier: Apache-2.0
"""What a recording's tables may be, as docs/recording.md says: columns, types and sizes."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from ipitrace.base.units import MIB


class Holds(Enum):
    """What a column holds."""

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
"""Of one value in a column, decompressed, on average; the widest has 8."""
LONGEST_TEXT: Final = 4096
MOST_ROWS_READ: Final = 50_000
"""Rows that one question may find; an IPI has some tens of events."""

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
    """What a column of a table of this version holds; None where there is no such column."""
    if column in _COLUMNS[table]:
        return _COLUMNS[table][column]
    return Holds.INTEGER if table != "host_events" and _STAMP.fullmatch(column) else None


def may_lack_values(column: str) -> bool:
    """Whether null stands for what is not known; of stamps, all but that of the send."""
    return column in _MAY_LACK or (column.endswith("_tsc") and column != "send_tsc")
