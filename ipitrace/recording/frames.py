# SPDX-License-Identifier: Apache-2.0
"""A recording as Arrow tables and data frames, for notebooks and scripts."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ipitrace.base.errors import HostError
from ipitrace.recording.decoder import Question, open_checked
from ipitrace.recording.reader import (
    EXIT_COUNTS,
    computing_with,
    open_table,
    read_run,
    recording_of,
    uncounted,
)
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import Percentiles, RepetitionFigures
from ipitrace.words.metrics import ALL_TIMINGS, PERCENTILES


@dataclass(frozen=True)
class Recording:
    """One recording on disk.

    Attributes:
        directory: where it is.
        run: the content of run.json.
    """

    directory: Path
    run: RunResult

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of its Parquet tables: `guest_ipis`; if traced, `host_events` and `spans`."""
        return tuple(self.run.tables)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One complete table, decoded into memory.

        The file's checksum, columns, types and sizes are checked first. Unlike `ipitrace report`,
        which decodes in a process without privileges, this decodes in the calling process: use it
        for recordings whose origin you trust.

        Args:
            name: one of `tables`.
            columns: those to read, in this order; None reads all.

        Raises:
            UsageError: there is no such table or column, or the file is damaged.
        """
        with open_table(self.directory, self.run, name) as file, _decoding():
            rows = self.run.tables[name].rows
            nulled = name == "spans" and (
                columns is None or not set(EXIT_COUNTS).isdisjoint(columns)
            )
            if columns is None:
                columns = list(open_checked(file, Question(name, rows))[1])
            # Exits are null by scenario, so that column is checked and read with them.
            needed = [*columns, "scenario"] if nulled else columns
            parquet, kinds = open_checked(file, Question(name, rows, needed))
            # pandas would follow what the file's metadata says about indexes and types.
            found = parquet.read(list(kinds)).replace_schema_metadata(None)
        found = self._with_nulls(found) if nulled else found
        return found.select(list(dict.fromkeys(columns)))

    def data_frame(self, name: str, columns: Sequence[str] | None = None) -> Any:  # noqa: ANN401 - pandas is optional
        """As table(), as a pandas.DataFrame; integers stay integers where values are missing.

        Raises:
            UsageError: see table().
            HostError: pandas is not installed.
        """
        try:
            pd: Any = importlib.import_module("pandas")
        except ImportError as error:
            raise HostError(
                "pandas is not installed.",
                "Install pandas, or use table(), which needs pyarrow only.",
            ) from error
        nullable = {pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype()}
        nullable |= {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
        nullable |= {pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype()}
        nullable |= {pa.uint32(): pd.UInt32Dtype(), pa.uint64(): pd.UInt64Dtype()}
        return self.table(name, columns).to_pandas(types_mapper=nullable.get)

    def figures(self) -> pa.Table:
        """Each repetition's percentiles of each timing, one row for each value.

        Columns: `scenario`; `repetition`, as in the other tables; `mode`; `metric` (`send`,
        `deliver`, `last_deliver` or `round_trip`); `percentile` (`p50`, `p90`, `p99` or
        `p99.9`); `cycles`.

        Raises:
            UsageError: a value is larger than any measurement.
        """
        columns = ("scenario", "repetition", "mode", "metric", "percentile", "cycles")
        rows = [
            dict(zip(columns, row, strict=True))
            for scenario in self.run.scenarios
            for figures in scenario.repetition_figures
            for row in _rows(scenario.name, figures)
        ]
        types = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.string(), pa.int64())
        with computing_with(self.directory):
            return pa.Table.from_pylist(rows, pa.schema(list(zip(columns, types, strict=True))))

    def _with_nulls(self, spans: pa.Table) -> pa.Table:
        """The spans, with null for exits that are unknown; early recordings have 0 there."""
        scenarios = pa.array(sorted(uncounted(self.run)), pa.string())
        for name in EXIT_COUNTS:
            if name in spans.column_names:
                counts = spans[name]
                unknown = pc.and_(
                    pc.is_in(spans["scenario"].cast(pa.string()), value_set=scenarios),
                    pc.equal(counts, pa.scalar(0, counts.type)),
                )
                nulls = pa.scalar(None, counts.type)
                index = spans.column_names.index(name)
                spans = spans.set_column(
                    index, spans.schema.field(index), pc.if_else(unknown, nulls, counts)
                )
        return spans


def open_recording(path: str | Path) -> Recording:
    """Open a recording: its directory, or the run.json in it.

    Raises:
        UsageError: it is incomplete or damaged, or is newer than this ipitrace.
    """
    directory = recording_of(Path(path))
    return Recording(directory, read_run(directory))


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Raise every error of the decoder as the ValueError that open_table() expects."""
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError((str(error).splitlines() or ["it cannot be decoded"])[0]) from error


def _rows(scenario: str, figures: RepetitionFigures) -> Iterator[tuple[Any, ...]]:
    for timing in ALL_TIMINGS:
        found: Percentiles | None = getattr(figures, timing.field)
        for percentile, field in PERCENTILES.items() if found is not None else ():
            cycles = getattr(found, field)
            yield scenario, figures.order, figures.mode, timing.name, percentile, cycles
