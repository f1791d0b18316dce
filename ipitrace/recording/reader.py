# SPDX-License-Identifier: Apache-2.0
"""Reads a recording from disk. It is not trusted, because it may come with a pull request.

Everything is checked against a limit before it is read or decoded; docs/recording.md lists the
limits.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import IO, Any, Final, NoReturn

from ipitrace.base.errors import UsageError
from ipitrace.base.resources import import_folder
from ipitrace.base.units import MIB
from ipitrace.base.untrusted import open_regular, parse_json, read_bounded
from ipitrace.recording.decoder import Question
from ipitrace.recording.result import SCHEMA_VERSION, RunResult
from ipitrace.recording.schema import MOST_ROWS, MOST_TABLE_BYTES
from ipitrace.recording.writer import CHECKSUM_FILE, MOST_RUN_BYTES, RUN_FILE, TABLES, file_of

_AGAIN: Final = "Copy the whole recording again, or make a new one with 'ipitrace run'."
_MOST_CHECKSUM_BYTES: Final = 4096  # four lines
_MOST_ANSWER_BYTES: Final = 16 * MIB
EXIT_COUNTS: Final = ("sender_exits", "target_exits")  # of spans
_MOST_SCENARIOS: Final = 1000
_MOST_WEIGHT_CYCLES: Final = 1e9  # a program takes some hundred
# Decoding takes one second for 100 MiB; a file that takes far longer is not a recording.
_LEAST_CPU_S: Final = 10
_BYTES_A_SECOND: Final = 4 * MIB
_WALL_FACTOR: Final = 6  # on a busy machine
# Isolated from the environment and the current directory; imports from where this ipitrace is.
_DECODER: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from ipitrace.recording.decoder import main; main(sys.argv[1:])"
)


def recording_of(path: Path) -> Path:
    """The recording that `path` names: its directory, or its run.json.

    Returns `path` for a run.json without the rest of its recording, and for anything else.

    Raises:
        UsageError: this user may not read it.
    """
    for place in (path, path / RUN_FILE):
        try:
            place.stat()
        except PermissionError as error:
            raise UsageError(
                f"{path} cannot be accessed: {error.strerror}.",
                "Run ipitrace as a user who may read it.",
            ) from error
        except (OSError, ValueError):  # the reader reports the error
            break
    whole = path.name == RUN_FILE and not path.is_dir() and (path.parent / CHECKSUM_FILE).exists()
    return path.parent if whole else path


def read_run(path: Path) -> RunResult:
    """The run of a recording, or of a run.json without the rest.

    Raises:
        UsageError: it is neither, or it is incomplete, damaged, or newer than this program.
    """
    place = recording_of(path)
    return _run_of(place / RUN_FILE if place.is_dir() else place, _read_checked(place)[1])


def read_run_text(path: Path) -> str:
    """The text of run.json, of a known version; its checksum is checked if there is one.

    Raises:
        UsageError: see read_run().
    """
    return _read_checked(recording_of(path))[0]


def read_rows(
    directory: Path,
    run: RunResult,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    between: Mapping[str, tuple[int, int]] | None = None,
    equal: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Some rows of one table in the table's order, after a check of the file's checksum.

    A separate process decodes the file, see recording.decoder. Memory use does not grow with
    the table.

    Args:
        directory: the recording, or its run.json.
        run: the result of read_run().
        table: one of TABLES.
        columns: those to read; None reads all.
        between: integer column to the least and the greatest value of the rows to read.
        equal: text column to the value of the rows to read.

    Raises:
        UsageError: the table cannot be read, or is not what docs/recording.md describes.
    """
    question = Question(table, 0, columns, between or {}, equal or {})
    with open_table(directory, run, table) as file:
        rows = _rows_of(
            parse_json(_ask_decoder(file, replace(question, rows=run.tables[table].rows)))
        )
    return [_known(row, uncounted(run)) for row in rows] if table == "spans" else rows


@contextlib.contextmanager
def open_table(directory: Path, run: RunResult, table: str) -> Iterator[IO[bytes]]:
    """Open the file of one table after a check of its checksum.

    Args:
        directory: the recording, or its run.json.
        run: the result of read_run().
        table: one of TABLES.

    Raises:
        UsageError: the table does not exist, or is damaged; or the code in the `with` block
            raised an OSError or a ValueError, as a decoder does.
    """
    if table not in run.tables:
        raise UsageError(
            f"{directory} has no table '{table}': nothing was traced, or there were no rows.",
            "Record again with 'ipitrace run', not with 'ipitrace run --no-trace'.",
        )
    directory = recording_of(directory)
    if not directory.is_dir():
        raise UsageError(
            f"{directory} is a run.json without its recording's tables.",
            "Give the directory that 'ipitrace run' wrote.",
        )
    path = directory / file_of(table)
    with _reading(path), open_regular(path, MOST_TABLE_BYTES) as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != _expected_checksum(directory, path.name):
            _damaged(path)
        yield file


def uncounted(run: RunResult) -> set[str]:
    """The scenarios whose exits do not come from kvm_exit."""
    return {
        row.name
        for row in run.scenarios
        if row.exits is None or not (row.exits.source or "").startswith("kvm_exit ")
    }


def _known(row: dict[str, Any], uncounted: Collection[str]) -> dict[str, Any]:
    """The span with null for unknown counts; older spans have 0 if kvm_exit never fired."""
    unknown = {name: None for name in EXIT_COUNTS if row.get(name) == 0}
    return row | unknown if row.get("scenario") in uncounted else row


@contextlib.contextmanager
def computing_with(path: Path) -> Iterator[None]:
    """Report an error of a computation in the `with` block as damage of the recording.

    Raises:
        UsageError: the computation failed.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UsageError(
            f"{path} is damaged: its values are not consistent ({type(error).__name__}).",
            _AGAIN,
        ) from error


def _rows_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    if "why" in answer:
        raise ValueError(answer["why"])
    rows: list[dict[str, Any]] = answer["rows"]
    return rows


def _ask_decoder(file: Any, question: Question) -> bytes:  # noqa: ANN401 - a raw binary file
    size = os.fstat(file.fileno()).st_size
    cpu_s = _LEAST_CPU_S + size // _BYTES_A_SECOND
    place = str(import_folder())
    command = [sys.executable, "-I", "-c", _DECODER, place, str(cpu_s), question.to_json()]
    # host/child.py is not used: it passes on this process's variables and feeds a pipe. The decoder
    # must seek in its file, gets only these variables, and restricts its own rights and lifetime.
    with subprocess.Popen(
        command,
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        late = Timer(_WALL_FACTOR * cpu_s, process.kill)
        late.start()
        try:
            output = process.stdout
            answer = b"" if output is None else output.read(_MOST_ANSWER_BYTES + 1)
        finally:
            late.cancel()
            process.kill()  # after its answer the decoder is not needed
    if not answer or len(answer) > _MOST_ANSWER_BYTES:
        raise ValueError("it cannot be decoded in bounded time and memory")
    return answer


def _read_checked(directory: Path) -> tuple[str, Any]:
    """run.json's text and its values; `directory` is a result of recording_of()."""
    if directory.exists() and not directory.is_dir():
        return _read_alone(directory)
    path = directory / RUN_FILE
    if not path.exists():
        raise UsageError(
            f"{directory} is not a recording: it has no {RUN_FILE}."
            if directory.is_dir()
            else f"There is no recording {directory}.",
            "Give the directory that 'ipitrace run' wrote.",
        )
    with _reading(path):
        content = read_bounded(path, MOST_RUN_BYTES)
    if not (directory / CHECKSUM_FILE).exists():
        raise _not_whole(directory, content)
    if hashlib.sha256(content).hexdigest() != _expected_checksum(directory, RUN_FILE):
        _damaged(path)
    hint = "Give the directory that 'ipitrace run' wrote."
    try:
        data = parse_json(content)
    except ValueError as error:
        raise UsageError(
            f"{directory} is not a recording: its {RUN_FILE} cannot be parsed: {_why(error)}.", hint
        ) from error
    _check_version(
        data,
        str(directory),
        f"is not a recording: its {RUN_FILE} has no valid schema_version",
        hint,
    )
    return content.decode(), data


def _read_alone(path: Path) -> tuple[str, Any]:
    """The same for a run.json without the rest of its recording."""
    hint = "Give a recording's directory, or a run.json that 'ipitrace run' wrote."
    try:
        content = read_bounded(path, MOST_RUN_BYTES)
        data = parse_json(content)
    except (OSError, ValueError) as error:
        raise UsageError(f"The file {path} is not a run.json: {_why(error)}.", hint) from error
    _check_version(
        data, f"The file {path}", "is not a run.json: it has no valid schema_version", hint
    )
    if _is_unfinished(data):
        raise _not_whole(path.parent, content)
    return content.decode(), data


def _check_version(data: Any, what: str, nothing: str, hint: str) -> None:  # noqa: ANN401 - JSON
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise UsageError(f"{what} {nothing}.", hint)
    if version > SCHEMA_VERSION:
        by = str(data.get("ipitrace_version"))[:40]
        raise UsageError(
            f"{what} was made by a newer ipitrace (version {by}, format {version}; this version "
            f"reads format {SCHEMA_VERSION}).",
            "Upgrade ipitrace to read it.",
        )


def _run_of(path: Path, data: Any) -> RunResult:  # noqa: ANN401 - JSON
    try:
        run = RunResult.from_dict(data)
        _check_counts(run)
        _check_names(run)
    except ValueError as error:
        raise UsageError(
            f"{path} does not follow version {SCHEMA_VERSION} of its format: {error}.",
            "docs/recording.md describes the format.",
        ) from error
    return run


def _check_counts(run: RunResult) -> None:
    if len(run.scenarios) > _MOST_SCENARIOS:
        raise ValueError(f"it has more than {_MOST_SCENARIOS} scenarios")
    for name, info in run.tables.items():
        if name not in TABLES:
            raise ValueError("it has a table that this version does not know")
        if not 0 <= info.rows <= MOST_ROWS:
            raise ValueError(f"its table {name} has {info.rows} rows")
    for row in run.scenarios:
        corrected = row.stages and row.stages.corrected
        if corrected and corrected.weights:
            cycles = (*corrected.weights.twin_cycles.values(), corrected.weights.rest_cycles)
            if max(map(abs, cycles)) > _MOST_WEIGHT_CYCLES:
                raise ValueError(f"an event of {row.name} weighs more than any can")


def _check_names(run: RunResult) -> None:
    """Check that every exit reason and path has a name: "" would mean the sum of all."""
    for row in run.scenarios:
        for figures in row.repetition_figures:
            exits = figures.exits
            named = [*(exits.sender or ()), *(exits.target or ())] if exits is not None else []
            if "" in (*named, *(figures.paths or ())):
                raise ValueError("an exit reason or a path has no name")


def _not_whole(directory: Path, content: bytes) -> UsageError:
    try:
        data = parse_json(content)
    except ValueError:
        data = None
    if _is_unfinished(data):
        return UsageError(
            f"{directory} is an unfinished recording: the run that wrote it was killed, or is "
            "still running.",
            "If it was killed, the next run into the same directory removes this recording.",
        )
    return UsageError(f"{directory} is an incomplete recording: it has no {CHECKSUM_FILE}.", _AGAIN)


def _is_unfinished(data: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether `data` is the header that a run writes at its start."""
    head = {"schema_version", "ipitrace_version", "complete"}
    return isinstance(data, dict) and data.keys() == head


def _expected_checksum(directory: Path, name: str) -> str | None:
    path = directory / CHECKSUM_FILE
    with _reading(path):
        text = read_bounded(path, _MOST_CHECKSUM_BYTES).decode(errors="replace")
    lines = text.splitlines(keepends=True)
    return next((line[:64] for line in lines if line[64:] == f"  {name}\n"), None)


def _damaged(path: Path) -> NoReturn:
    raise UsageError(
        f"{path} is damaged, or was changed after it was made: its checksum differs from the one "
        f"in {CHECKSUM_FILE}.",
        _AGAIN,
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {_why(error)}.", _AGAIN) from error


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
