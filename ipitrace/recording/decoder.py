# SPDX-License-Identifier: Apache-2.0
"""Decodes rows of one Parquet file, in a process with few rights and small limits.

The decoder is a large program in C++ and C, and a file's footer does not limit what its pages
hold: a page of some bytes may claim to hold 2 GiB, and a changed count may make the decoder wait
forever. The footer's figures are checked first. The kernel limits the rest: memory (RLIMIT_AS),
time (RLIMIT_CPU), files and rights.

This process reads the file from stdin and gets the query as an argument. It writes JSON to
stdout.
"""

import contextlib
import ctypes
import functools
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ipitrace.base.units import MIB
from ipitrace.recording.schema import (
    LONGEST_TEXT,
    MOST_COLUMNS,
    MOST_FOOTER_BYTES,
    MOST_GROUPS,
    MOST_ROWS_READ,
    MOST_VALUE_BYTES,
    Holds,
    holds,
    may_lack_values,
)

_MAGIC: Final = b"PAR1"
_TAIL_BYTES: Final = 8  # the footer's length and the magic number, parquet-format's README
_BATCH_ROWS: Final = 1 << 16
_GROUP_ROWS: Final = 1 << 20  # as writer.ROW_GROUP_ROWS, which this process does not import
_SMALL_COLUMN_BYTES: Final = MIB  # dictionaries and page headers
_CODECS: Final = frozenset({"ZSTD", "SNAPPY", "UNCOMPRESSED"})
_MEMORY_BYTES: Final = 256 * MIB
_NOBODY: Final = 65534
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # include/uapi/linux/prctl.h
_SIGKILL: Final = 9


@dataclass(frozen=True)
class Question:
    """A query for rows.

    Attributes:
        table: one of recording.TABLES.
        rows: the table's number of rows according to run.json.
        columns: the columns to return; None is all.
        between: integer column to the least and the greatest value to return.
        equal: text column to the only value to return.
    """

    table: str
    rows: int
    columns: Sequence[str] | None = None
    between: Mapping[str, Sequence[int]] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The query as text for main()."""
        return json.dumps(asdict(self))


def decode(file: IO[bytes], question: Question) -> Iterator[dict[str, Any]]:
    """Yield the rows that match the query.

    Raises:
        ValueError: the file is not what docs/recording.md describes.
        pa.ArrowException, OSError, MemoryError: it cannot be decoded.
    """
    parquet, kinds = open_checked(file, question)
    found = 0
    for group in range(parquet.metadata.num_row_groups):
        if _cannot_hold(parquet.metadata.row_group(group), question.between):
            continue
        batches = parquet.iter_batches(_BATCH_ROWS, [group], list(kinds), use_threads=False)
        for batch in batches:
            rows = _wanted(batch, question)
            found += rows.num_rows
            if found > MOST_ROWS_READ:
                raise ValueError(f"more than {MOST_ROWS_READ} rows match the query")
            yield from _plain_rows(rows, question.columns or list(kinds))


def open_checked(file: IO[bytes], question: Question) -> tuple[pq.ParquetFile, dict[str, Holds]]:
    """Check that the file is what docs/recording.md describes; return it and the columns to decode.

    Raises:
        ValueError: it is not.
        pa.ArrowException, OSError, MemoryError: its footer cannot be decoded.
    """
    size = file.seek(0, os.SEEK_END)
    _check_footer(file, size)
    limits = {
        "pre_buffer": False,
        "buffer_size": 1 << 16,  # otherwise each column of a row group is read as a whole
        "thrift_string_size_limit": MIB,
        "thrift_container_size_limit": 1 << 16,
    }
    parquet = pq.ParquetFile(file, **limits)
    _check_sizes(parquet.metadata, size, question.rows)
    kinds = _check_columns(parquet.schema_arrow, question)
    # With a dictionary, memory holds each text once, however the file was written.
    texts = [name for name, kind in kinds.items() if kind == Holds.TEXT]
    parquet = pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=texts, **limits)
    return parquet, kinds


def _check_footer(file: IO[bytes], size: int) -> None:
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    if len(tail) < _TAIL_BYTES or tail[4:] != _MAGIC:
        raise ValueError("it is not a Parquet file")
    if int.from_bytes(tail[:4], "little") > min(size, MOST_FOOTER_BYTES):
        raise ValueError("its footer is too long")
    file.seek(0)


def _check_sizes(metadata: pq.FileMetaData, size: int, rows: int) -> None:
    """Check that the footer's figures are consistent and fit into the file."""
    if metadata.num_rows != rows:
        raise ValueError(f"it has {metadata.num_rows} rows, but run.json states {rows}")
    if metadata.num_row_groups > MOST_GROUPS or metadata.num_columns > MOST_COLUMNS:
        raise ValueError("it has too many columns or row groups")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != rows:
        raise ValueError("the rows of its row groups do not add up to its number of rows")
    for group in groups:
        if not 0 <= group.num_rows <= _GROUP_ROWS or group.num_columns != metadata.num_columns:
            raise ValueError(f"it has a row group of {group.num_rows} rows")
        for j in range(group.num_columns):
            _check_column(group.column(j), group.num_rows, size)


def _check_column(column: pq.ColumnChunkMetaData, rows: int, size: int) -> None:
    name = column.path_in_schema[:60]
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
    if start < 0 or packed < 0 or start + packed > size:
        raise ValueError(f"its column {name!r} reaches beyond the file's end")
    if not 0 <= unpacked <= MOST_VALUE_BYTES * rows + _SMALL_COLUMN_BYTES:
        raise ValueError(f"its column {name!r} is too large when decompressed")
    if column.num_values != rows:
        raise ValueError(f"the number of values in its column {name!r} is not the number of rows")
    if column.compression not in _CODECS:
        raise ValueError(f"the compression of its column {name!r} is unknown")


def _check_columns(schema: pa.Schema, question: Question) -> dict[str, Holds]:
    """The columns to decode, after a check that they have the format's types."""
    names = schema.names
    if len(set(names)) < len(names):
        raise ValueError("two of its columns have the same name")
    wanted = names if question.columns is None else question.columns
    kinds: dict[str, Holds] = {}
    for name in dict.fromkeys([*wanted, *question.between, *question.equal]):
        if name not in names:
            raise ValueError(f"it has no column '{name[:60]}'")
        kind = holds(question.table, name)
        if kind is None:
            raise ValueError(f"it has the column {name[:60]!r}, which this version does not know")
        if not _is(kind, schema.field(name).type):
            raise ValueError(f"its column '{name}' is not of the type {kind.value}")
        kinds[name] = kind
    return kinds


def _is(kind: Holds, arrow: pa.DataType) -> bool:
    if pa.types.is_dictionary(arrow):
        arrow = arrow.value_type
        return kind == Holds.TEXT and pa.types.is_string(arrow)
    if kind == Holds.INTEGER:
        return bool(pa.types.is_integer(arrow))
    return bool(pa.types.is_string(arrow) if kind == Holds.TEXT else pa.types.is_boolean(arrow))


def _cannot_hold(group: pq.RowGroupMetaData, between: Mapping[str, Sequence[int]]) -> bool:
    """Whether a row group's statistics exclude all rows of the query."""
    for j in range(group.num_columns):
        column = group.column(j)
        if column.path_in_schema in between and column.is_stats_set:
            low, high = between[column.path_in_schema]
            known = column.statistics
            least, most = (known.min, known.max) if known.has_min_max else (None, None)
            if isinstance(least, int) and isinstance(most, int) and (most < low or least > high):
                return True
    return False


def _wanted(batch: pa.RecordBatch, question: Question) -> pa.RecordBatch:
    masks = []
    for name, (low, high) in question.between.items():
        column = batch.column(name)
        least, most = _range(column.type)
        if low > most or high < least:
            return batch.slice(0, 0)
        masks.append(pc.greater_equal(column, pa.scalar(max(low, least), column.type)))
        masks.append(pc.less_equal(column, pa.scalar(min(high, most), column.type)))
    for name, text in question.equal.items():
        column = batch.column(name)
        number = pc.index(column.dictionary, text).as_py()
        if number < 0:
            return batch.slice(0, 0)
        masks.append(pc.equal(column.indices, number))
    return batch.filter(functools.reduce(pc.and_, masks)) if masks else batch


def _range(arrow: pa.DataType) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    bits = arrow.bit_width
    if pa.types.is_signed_integer(arrow):
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _plain_rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    values: dict[str, list[Any]] = {}
    for name in columns:
        column = batch.column(name)
        if column.null_count and not may_lack_values(name):
            raise ValueError(f"a value of its column '{name}' is missing")
        if pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary)
            if batch.num_rows and (pc.max(lengths).as_py() or 0) > LONGEST_TEXT:
                raise ValueError(f"a value of its column '{name}' is too long")
        values[name] = column.to_pylist()
    for i in range(batch.num_rows):
        yield {name: column[i] for name, column in values.items()}


def restrict(cpu_s: int) -> None:
    """Drop permanently all rights that decoding does not need, and limit resources."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - the shortest way
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, used_bytes + _MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # in a user namespace without that id
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)


def main(words: Sequence[str]) -> None:
    """Answer the query in `words`: seconds of CPU time, then Question.to_json()."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    question = Question(**json.loads(words[1]))
    restrict(int(words[0]))
    answer: dict[str, object]
    try:
        with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as file:
            answer = {"rows": list(decode(file, question))}
    except (ValueError, OSError, MemoryError, pa.ArrowException) as error:
        said = str(error).splitlines() or ["decoding it needs too much memory"]
        answer = {"why": said[0][:200]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
