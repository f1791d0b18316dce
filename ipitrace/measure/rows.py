# SPDX-License-Identifier: Apache-2.0
"""Writes the rows of a recording's tables, one repetition at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ipitrace.measure.columns import (
    GUEST_IPI_MEANINGS,
    HOST_EVENT_MEANINGS,
    SPAN_MEANINGS,
    RepetitionKey,
    guest_ipi_columns,
    host_event_columns,
    span_columns,
)
from ipitrace.measure.repetition import Recorded
from ipitrace.words.scenarios import Route


class Sink(Protocol):
    """Receives the rows of the recording."""

    def append(
        self, table: str, columns: Mapping[str, NDArray[Any]], meanings: Mapping[str, str]
    ) -> None:
        """Add rows to a table."""


class RowWriter:
    """Writes each repetition's rows to a sink, and numbers the IPIs of the whole recording."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ipis = 0

    def write(self, place: RepetitionKey, routes: Sequence[Route], recorded: Recorded) -> None:
        """Write one repetition."""
        for route in routes:
            columns = guest_ipi_columns(place, recorded.storm, recorded.mode, route)
            self._sink.append("guest_ipis", columns, GUEST_IPI_MEANINGS)
        if recorded.trace is None or recorded.watched is None:
            return
        events, spans = host_event_columns(place, recorded.trace), recorded.watched.spans
        self._sink.append("host_events", events, HOST_EVENT_MEANINGS)
        columns = span_columns(place, spans, self._ipis)
        self._sink.append("spans", columns, SPAN_MEANINGS)
        self._ipis += len(spans.seq)
