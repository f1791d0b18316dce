# SPDX-License-Identifier: Apache-2.0
"""A recording on disk: run.json, Parquet tables and their checksums in one directory, written.

docs/recording.md describes the format. A recording is written beside its place under
another name and renamed when whole, so that what is there under its own name can be
relied on.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import ipitrace
from ipitrace.errors import HostError, UsageError
from ipitrace.result import SCHEMA_VERSION, RunResult, TableInfo
from ipitrace.units import MIB
from ipitrace.untrusted import parse_json, read_bounded

RUN_FILE: Final = "run.json"
CHECKSUM_FILE: Final = "SHA256SUMS"
TABLES: Final[tuple[str, ...]] = ("host_events", "guest_ipis", "spans")
ROW_GROUP_ROWS: Final = 1 << 20
MOST_RUN_BYTES: Final = 16 * MIB
"""Of run.json: a repetition takes 650 bytes in each mode, so that this holds 8,000."""

_UNITS = {"_ns": "ns", "_tsc": "TSC cycles", "_cycles": "TSC cycles"}
_ELSEWHERE = "Choose another directory with -o."

Column: TypeAlias = NDArray[Any] | pa.Array
"""Integers, floats or booleans, masked where there is none; or strings."""


class RecordingWriter:
    """Writes one recording; a context manager that leaves all of it or nothing.

    Raises:
        UsageError: `directory` holds a recording and `force` is not set, or holds
            something else, or cannot be a recording's place.
        HostError: nothing can be written there.
    """

    def __init__(self, directory: Path, *, force: bool) -> None:
        self._given = directory
        self._directory = Path(os.path.realpath(directory))  # resolve() chokes on link loops
        self._force = force
        with _writing(directory):
            self._check_place()
        self._unfinished: Path | None = None
        self._made_parents: list[Path] = []
        self._tables: dict[str, _TableWriter] = {}

    def __enter__(self) -> Self:
        header = {
            "schema_version": SCHEMA_VERSION,
            "ipitrace_version": ipitrace.__version__,
            "complete": False,
        }
        parent = self._directory.parent
        try:
            with _writing(self._given):
                self._made_parents = [p for p in (parent, *parent.parents) if not p.exists()]
                parent.mkdir(parents=True, exist_ok=True)
                self._unfinished = self._make_sibling("partial")
                _write(self._unfinished / RUN_FILE, json.dumps(header) + "\n")
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._unfinished is not None:
            self._clean_up()

    def _clean_up(self) -> None:
        """Remove all that was made, for nothing of it came into its place."""
        for table in self._tables.values():
            table.abandon()
        if self._unfinished is not None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # was not made, or somebody put something there
            for path in self._made_parents:
                path.rmdir()

    def append(
        self, table: str, columns: Mapping[str, Column], meanings: Mapping[str, str]
    ) -> None:
        """Add rows to a table; memory holds no more than about ROW_GROUP_ROWS of them.

        Args:
            table: one of TABLES.
            columns: by name and of one length; the first call's names and types hold for
                all. Strings become dictionary-encoded.
            meanings: one line for each column; its unit is part of its name.

        Raises:
            HostError: the disk refuses.
        """
        if table not in TABLES:
            raise ValueError(f"a recording has no table {table!r}")
        if self._unfinished is None:
            raise ValueError("append() outside of the writer's context")
        if table not in self._tables:
            path = self._unfinished / file_of(table)
            self._tables[table] = _TableWriter(table, path, meanings)
        with _writing(self._given):
            self._tables[table].append(columns)

    def finish(self, result: RunResult) -> RunResult:
        """Put the recording into its place, and answer the run as readers will see it.

        Raises:
            HostError: the disk refuses; what was in the place is there as before.
        """
        if self._unfinished is None:
            raise ValueError("finish() outside of the writer's context")
        with _writing(self._given):
            closed = {name: self._tables[name].close() for name in TABLES if name in self._tables}
            tables = {name: info for name, info in closed.items() if info is not None}
            result = replace(result, tables=tables)
            _write(self._unfinished / RUN_FILE, result.to_json())
            names = [RUN_FILE, *map(file_of, tables)]
            lines = [f"{_sha256(self._unfinished / name)}  {name}\n" for name in names]
            _write(self._unfinished / CHECKSUM_FILE, "".join(lines))
            for name in (*names, CHECKSUM_FILE, "."):
                _sync(self._unfinished / name)
        whole, self._unfinished = self._unfinished, None  # from here on worth keeping
        try:
            self._check_place()
            self._move_into_place(whole)
        except (OSError, UsageError) as error:
            why = error.strerror if isinstance(error, OSError) else error.message
            raise HostError(
                f"The recording cannot be moved to {self._given}: {why}",
                f"It is whole, and is kept as {whole}.",
            ) from error
        return RunResult.from_dict(json.loads(result.to_json()))

    def _check_place(self) -> None:
        """See that the recording may go to its place; nothing is deleted that is not ours."""
        place, given = self._directory, self._given
        if not place.exists():
            return
        if not place.is_dir():
            raise UsageError(f"{given} is not a directory.", _ELSEWHERE)
        names = {path.name for path in place.iterdir()}
        if place.is_mount() or place == Path.cwd():
            raise UsageError(
                f"{given} cannot be replaced as a whole, since it is "
                f"{'a mount point' if place.is_mount() else 'the current directory'}.",
                f"Choose a new directory inside it with -o, for instance {given / 'recording'}.",
            )
        ours = {RUN_FILE, CHECKSUM_FILE, *map(file_of, TABLES)}
        if names and not (_looks_like_ours(place) and names <= ours):
            raise UsageError(
                f"{given} holds files that are not a recording's; they would be lost.", _ELSEWHERE
            )
        if names and not self._force:
            raise UsageError(
                f"{given} already holds a recording.",
                "Choose another directory with -o, or replace it with --force.",
            )

    def _move_into_place(self, whole: Path) -> None:
        place = self._directory
        if not place.exists() or not any(place.iterdir()):
            whole.rename(place)
            _sync(place.parent)
            return
        old = self._make_sibling("old")
        place.rename(old)
        try:
            whole.rename(place)
        except BaseException:
            old.rename(place)
            raise
        _sync(place.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _make_sibling(self, role: str) -> Path:
        """A new hidden directory beside the place; a killed run may have left its like."""
        place = self._directory
        for i in itertools.count():
            again = f"-{i}" if i else ""
            path = place.with_name(f".{place.name}.{role}-{os.getpid()}{again}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
        raise AssertionError


class _TableWriter:
    """Writes one table, a row group at a time; there is no file until there is a row."""

    def __init__(self, name: str, path: Path, meanings: Mapping[str, str]) -> None:
        self._name = name
        self._path = path
        self._meanings = meanings
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._rows = 0

    def append(self, columns: Mapping[str, Column]) -> None:
        if set(columns) != set(self._meanings):
            raise ValueError(f"{self._name}: the columns are not those that have a meaning")
        if not any(map(len, columns.values())):
            return  # without a value the type of a string column cannot be told
        arrays = {name: _to_arrow(column) for name, column in columns.items()}
        if self._schema is None:
            self._schema = pa.schema(
                [(name, array.type) for name, array in arrays.items()], self._metadata()
            )
        rows = pa.table(arrays, self._schema)
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        if self._waiting_rows >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> TableInfo | None:
        """What the table holds; None when that is nothing."""
        self._flush()
        if self._writer is None or self._schema is None:
            return None
        self._writer.close()
        return TableInfo(self._rows, {name: self._meanings[name] for name in self._schema.names})

    def abandon(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer.is_open = False  # or its finaliser tries again, and complains

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        rows = pa.concat_tables(self._waiting).unify_dictionaries()
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._rows += len(rows)
        self._waiting, self._waiting_rows = [], 0

    def _metadata(self) -> dict[str, str]:
        columns = {
            name: {"description": meaning, "unit": unit_of(name)}
            for name, meaning in self._meanings.items()
        }
        return {
            "ipitrace.schema_version": str(SCHEMA_VERSION),
            "ipitrace.version": ipitrace.__version__,
            "ipitrace.table": self._name,
            "ipitrace.columns": json.dumps(columns),
        }


def unit_of(column: str) -> str | None:
    """The unit a column's name ends with; None where it is a plain number or a word."""
    return next((unit for end, unit in _UNITS.items() if column.endswith(end)), None)


def file_of(table: str) -> str:
    """The file of a table of TABLES."""
    return f"{table}.parquet"


def _to_arrow(column: Column) -> pa.Array:
    """As every reader of Parquet knows it: a number, a truth value, or an encoded string."""
    array = column if isinstance(column, pa.Array) else pa.array(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind):
        return array.cast(pa.dictionary(pa.int32(), pa.string()))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"a column of {kind} would not be readable everywhere")
    return array


def _looks_like_ours(directory: Path) -> bool:
    """Whether run.json there is one of ours, of whatever version."""
    try:
        data = parse_json(read_bounded(directory / RUN_FILE, MOST_RUN_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"schema_version", "ipitrace_version"} <= data.keys()


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"The recording cannot be written to {directory}: {error.strerror or error}.",
            "Free space, or choose another directory with -o.",
        ) from error


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
