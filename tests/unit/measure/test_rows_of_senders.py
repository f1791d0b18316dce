# SPDX-License-Identifier: Apache-2.0
"""The rows of a storm with several senders."""

import numpy as np
from strategies import receipts, sends, storm

from ipitrace.measure.columns import RepetitionKey
from ipitrace.measure.repetition import Recorded
from ipitrace.measure.rows import RowWriter
from ipitrace.words.scenarios import Mode, Pattern, routes_of


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, list[object]]]] = []

    def append(self, table: str, columns: object, _meanings: object) -> None:
        assert isinstance(columns, dict)
        self.rows.append((table, {n: np.ma.asanyarray(c).tolist() for n, c in columns.items()}))


def test_each_row_of_a_ring_has_its_sender_and_target() -> None:
    logs = [sends([(10, 11, 19), (30, 31, 39)]), sends([(15, 16, 20), (40, 41, 49)])]
    logs[1]["sender"] = 1
    one = storm(np.concatenate(logs), [receipts([18, 44]), receipts([12, 33])])
    sink = Kept()
    routes = routes_of(Pattern.RING, (0, 1))
    RowWriter(sink).write(RepetitionKey("ring", 0), routes, Recorded(one, Mode.OFF))
    rows = [
        row
        for table, columns in sink.rows
        for row in zip(
            *(columns[name] for name in ("sender", "target", "send_tsc", "handler_tsc")),
            strict=True,
        )
        if table == "guest_ipis"
    ]
    assert rows == [(0, 1, 10, 12), (0, 1, 30, 33), (1, 0, 15, 18), (1, 0, 40, 44)]
