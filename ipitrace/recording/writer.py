# SPDX-License-Identifier: Apache-2.0
"""Writes a recording: run.json, Parquet tables and their checksums in one directory.

docs/recording.md describes the format. A recording is written beside its place under another
name, and renamed when it is complete. A recording under its own name is therefore complete.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.output import DirectoryEntry, create_directory, locate
from ipitrace.base.unfinished import Unfinished, remove_leftovers
from ipitrace.base.units import MIB
from ipitrace.base.untrusted import parse_json, read_bounded
from ipitrace.base.version import VERSION
from ipitrace.recording.result import SCHEMA_VERSION, RunResult, TableInfo

RUN_FILE: Final = "run.json"
CHECKSUM_FILE: Final = "SHA256SUMS"
TABLES: Final[tuple[str, ...]] = ("host_events", "guest_ipis", "spans")
ROW_GROUP_ROWS: Final = 1 << 20
MOST_RUN_BYTES: Final = 16 * MIB
"""The limit for run.json. A repetition takes 650 bytes in each mode: 8,000 repetitions fit."""

_UNITS = {"_ns": "ns", "_tsc": "TSC cycles", "_cycles": "TSC cycles"}
_ELSEWHERE = "Choose another directory with -o."

Column: TypeAlias = NDArray[Any] | pa.Array
"""Integers, floats or booleans, masked if a value is absent; or strings."""


_OURS: Final = frozenset({RUN_FILE, CHECKSUM_FILE, *(f"{table}.parquet" for table in TABLES)})


class RecordingWriter:
    """Writes one recording; a context manager that leaves a complete recording or nothing.

    Raises:
        UsageError: `directory` holds a recording and `force` is not set, or it holds other
            files, or it cannot be replaced by a recording.
        HostError: nothing can be written there.
    """

    def __init__(self, directory: Path, *, force: bool) -> None:
        self._given = directory
        self._force = force
        with (
            _writing(directory),
            contextlib.suppress(FileNotFoundError),
            locate(directory) as place,
        ):
            self._check(place)
        self._held = contextlib.ExitStack()
        self._place: DirectoryEntry | None = None
        self._unfinished: Unfinished | None = None
        self._tables: dict[str, _TableWriter] = {}

    def __enter__(self) -> Self:
        header = {
            "schema_version": SCHEMA_VERSION,
            "ipitrace_version": VERSION,
            "complete": False,
        }
        try:
            with _writing(self._given):
                self._place = self._held.enter_context(locate(self._given, make_parents=True))
                remove_leftovers(self._place, files=_OURS, run_file=RUN_FILE, seal=CHECKSUM_FILE)
                self._unfinished = Unfinished(*self._make_sibling(self._place, "partial"))
                self._held.callback(self._unfinished.close)
                self._unfinished.begin(RUN_FILE, json.dumps(header) + "\n")
        except BaseException:
            self._clean_up()
            self._held.close()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if self._unfinished is not None:
                self._clean_up()
        finally:
            self._held.close()

    def _clean_up(self) -> None:
        """Remove all files that this writer made; none of them was moved into its place."""
        for table in self._tables.values():
            table.abandon()
        if self._unfinished is not None:
            self._unfinished.remove()
        if self._place is not None:
            self._place.remove_made()

    def append(
        self, table: str, columns: Mapping[str, Column], meanings: Mapping[str, str]
    ) -> None:
        """Add rows to a table; memory holds no more than about ROW_GROUP_ROWS of them.

        Args:
            table: one of TABLES.
            columns: by name and of one length. All calls must have the names and types of
                the first one. Strings are dictionary-encoded.
            meanings: one line for each column; a column's unit is part of its name.

        Raises:
            HostError: it cannot be written.
        """
        if table not in TABLES:
            raise ValueError(f"a recording has no table {table!r}")
        if self._unfinished is None:
            raise ValueError("append() outside of the writer's context")
        if table not in self._tables:
            self._tables[table] = _TableWriter(table, self._unfinished, meanings)
        with _writing(self._given):
            self._tables[table].append(columns)

    def finish(self, result: RunResult) -> RunResult:
        """Move the recording into its place. Returns the run as readers will see it.

        Raises:
            HostError: it cannot be written. The place is unchanged.
        """
        if self._unfinished is None or self._place is None:
            raise ValueError("finish() outside of the writer's context")
        unfinished = self._unfinished
        with _writing(self._given):
            closed = {name: self._tables[name].close() for name in TABLES if name in self._tables}
            tables = {name: info for name, info in closed.items() if info is not None}
            result = replace(result, tables=tables)
            unfinished.rewrite(result.to_json())
            names = [RUN_FILE, *map(file_of, tables)]
            lines = [f"{_sha256(unfinished.path / name)}  {name}\n" for name in names]
            unfinished.write(CHECKSUM_FILE, "".join(lines))
            for name in (*names, CHECKSUM_FILE, "."):
                _sync(unfinished.path / name)
            unfinished.hand_over()
        self._unfinished = None  # an error from here on does not remove it
        try:
            self._check(self._place)
            self._move_into_place(self._place, unfinished.place)
        except (OSError, UsageError) as error:
            why = error.strerror if isinstance(error, OSError) else error.message
            raise HostError(
                f"The recording cannot be moved to {self._given}: {why}",
                f"It is complete, and is kept as {self._given.parent / unfinished.place.name}.",
            ) from error
        return RunResult.from_dict(json.loads(result.to_json()))

    def _check(self, place: DirectoryEntry) -> None:
        """Check that the recording may be moved to its place: only recordings are replaced."""
        given, found = self._given, place.status()
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{given} is not a directory.", _ELSEWHERE)
        is_mount = os.path.ismount(place.path)
        if is_mount or os.path.samestat(found, Path.cwd().stat()):
            raise UsageError(
                f"{given} cannot be replaced as a whole, since it is "
                f"{'a mount point' if is_mount else 'the current directory'}.",
                f"Choose a new directory inside it with -o, for instance {given / 'recording'}.",
            )
        names = place.entries()
        if names and not (_looks_like_ours(place.path) and names <= _OURS):
            raise UsageError(
                f"{given} contains files that are not part of a recording; they would be deleted.",
                _ELSEWHERE,
            )
        if names and not self._force:
            raise UsageError(
                f"{given} already holds a recording.",
                "Choose another directory with -o, or replace it with --force.",
            )

    def _move_into_place(self, place: DirectoryEntry, whole: DirectoryEntry) -> None:
        if place.status() is None or not place.entries():
            whole.rename_to(place)
            _sync(place.path.parent)
            return
        old, fd = self._make_sibling(place, "old")
        os.close(fd)
        place.rename_to(old)
        try:
            whole.rename_to(place)
        except BaseException:
            old.rename_to(place)
            raise
        _sync(place.path.parent)
        shutil.rmtree(old.name, ignore_errors=True, dir_fd=old.directory_fd)

    def _make_sibling(self, place: DirectoryEntry, role: str) -> tuple[DirectoryEntry, int]:
        """A new hidden directory beside the place, and its descriptor.

        A killed run may have left one with the same name, so the name gets a number.
        """
        for i in itertools.count():
            again = f"-{i}" if i else ""
            sibling = place.sibling(f".{place.name}.{role}-{os.getpid()}{again}")
            with contextlib.suppress(FileExistsError):
                return sibling, create_directory(sibling)
        raise AssertionError


class _TableWriter:
    """Writes one table, a row group at a time; the first row creates the file."""

    def __init__(self, name: str, directory: Unfinished, meanings: Mapping[str, str]) -> None:
        self._name = name
        self._directory = directory
        self._file: BinaryIO | None = None
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
            return  # without a value the type of a string column is not known
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
        """The table's description; None if the table has no row."""
        self._flush()
        if self._writer is None or self._schema is None:
            return None
        self._writer.close()
        self._close_file()
        return TableInfo(self._rows, {name: self._meanings[name] for name in self._schema.names})

    def abandon(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer.is_open = False  # otherwise its finaliser tries again and prints an error
        with contextlib.suppress(OSError):
            self._close_file()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        if self._writer is None:
            self._file = os.fdopen(self._directory.create(file_of(self._name)), "wb")
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
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
            "ipitrace.version": VERSION,
            "ipitrace.table": self._name,
            "ipitrace.columns": json.dumps(columns),
        }


def unit_of(column: str) -> str | None:
    """The unit at the end of a column's name; None if the column is a plain number or text."""
    return next((unit for end, unit in _UNITS.items() if column.endswith(end)), None)


def file_of(table: str) -> str:
    """The file of a table of TABLES."""
    return f"{table}.parquet"


def _to_arrow(column: Column) -> pa.Array:
    """Convert to a type that all Parquet readers know: number, boolean, dictionary of strings."""
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
    """Whether `directory` has a run.json of any ipitrace version."""
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
