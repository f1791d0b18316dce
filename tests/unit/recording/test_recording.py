# SPDX-License-Identifier: Apache-2.0
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import (
    EVENT_MEANINGS,
    SPAN_MEANINGS,
    empty_run,
    events,
    make_recording,
    read_table,
    spans,
    values_of,
)

import ipitrace.recording.writer as recording_module
from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.resources import example_dir
from ipitrace.recording.reader import read_rows, read_run, read_run_text
from ipitrace.recording.result import SCHEMA_VERSION, RunResult
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

FILES = (RUN_FILE, CHECKSUM_FILE, "spans.parquet", "host_events.parquet")
ANSWERS: list[Callable[[Path], object]] = [
    read_run,
    lambda directory: read_rows(directory, read_run(directory), "spans"),
    lambda directory: read_rows(directory, read_run(directory), "host_events"),
]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write further, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def seal(directory: Path) -> None:
    """Make the checksums right again after a deliberate change."""
    names = sorted(path.name for path in directory.iterdir() if path.name != CHECKSUM_FILE)
    digest = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
    (directory / CHECKSUM_FILE).write_text("".join(f"{digest[n]}  {n}\n" for n in names))


def change_run(directory: Path, **changes: Any) -> None:
    data = json.loads((directory / RUN_FILE).read_text()) | changes
    (directory / RUN_FILE).write_text(json.dumps(data))
    seal(directory)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@given(values_of(RunResult))
@settings(max_examples=50)
def test_any_run_survives_its_json(run: RunResult) -> None:
    assert RunResult.from_dict(run.to_dict()) == run
    assert RunResult.from_dict(json.loads(run.to_json())) == run


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    run = make_recording(tmp_path / "r")
    assert read_run(tmp_path / "r") == run
    assert {name: info.rows for name, info in run.tables.items()} == {
        "host_events": 90,
        "spans": 30,
    }
    assert run.tables["spans"].columns == SPAN_MEANINGS
    table = read_table(tmp_path / "r", "spans")
    for name, column in spans(30).items():
        assert table[name].to_pylist() == column.tolist(), name
    assert table["handler_tsc"].null_count == 10
    assert names_in(tmp_path) == {"r"}
    assert names_in(tmp_path / "r") == set(FILES)


@given(
    st.lists(
        st.lists(st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.text()), max_size=9),
        max_size=6,
    ),
    st.integers(1, 12),
)
@settings(max_examples=50, deadline=None)
def test_batches_come_back_as_one_table(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int | None, str]]], size: int
) -> None:
    directory = tmp_path_factory.mktemp("rows") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording_module, "ROW_GROUP_ROWS", size)
        with RecordingWriter(directory, force=False) as writer:
            for batch in batches:
                columns = {
                    "stamp_tsc": pa.array([row[0] for row in batch], pa.int64()),
                    "kind": pa.array([row[1] for row in batch], pa.string()),
                }
                writer.append("spans", columns, {"stamp_tsc": "when", "kind": "what"})
            run = writer.finish(empty_run())
    rows = [row for batch in batches for row in batch]
    assert ("spans" in run.tables) == bool(rows) == (directory / "spans.parquet").exists()
    if rows:
        table = read_table(directory, "spans")
        assert list(zip(*(table[n].to_pylist() for n in table.column_names), strict=True)) == rows
        groups = pq.ParquetFile(directory / "spans.parquet").metadata
        assert all(groups.row_group(i).num_rows <= size for i in range(groups.num_row_groups))


def test_memory_holds_one_row_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "ROW_GROUP_ROWS", 10_000)
    before = pa.total_allocated_bytes()
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        for i in range(100):
            writer.append("spans", spans(1000, first=1000 * i), SPAN_MEANINGS)
            assert pa.total_allocated_bytes() - before < 10_000 * 200
        assert writer.finish(empty_run()).tables["spans"].rows == 100_000


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    metadata = pq.ParquetFile(tmp_path / "r" / "spans.parquet").metadata
    said = {key.decode(): value.decode() for key, value in metadata.metadata.items()}
    assert said["ipitrace.schema_version"] == str(SCHEMA_VERSION)
    assert said["ipitrace.table"] == "spans"
    columns = json.loads(said["ipitrace.columns"])
    assert columns["send_tsc"] == {"description": "before the send", "unit": "TSC cycles"}
    assert columns["path"]["unit"] is None
    shipped = pq.read_schema(example_dir() / "spans.parquet").metadata
    assert {name for name in metadata.metadata if name.startswith(b"ipitrace.")} == set(shipped)
    column = metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    schema = pq.read_schema(tmp_path / "r" / "spans.parquet")
    assert schema.field("path").type == pa.dictionary(pa.int32(), pa.string())


def test_polars_reads_it(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    frame = pl.read_parquet(tmp_path / "r" / "spans.parquet")
    assert frame["handler_tsc"].null_count() == 10
    assert frame["path"].cast(pl.String).to_list()[:2] == ["exitless", "msr-exit"]


def test_duckdb_reads_it(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    query = (
        f"select path, count(handler_tsc) from '{tmp_path}/r/spans.parquet' group by 1 order by 1"  # noqa: S608
    )
    assert duckdb.sql(query).fetchall() == [("exitless", 10), ("msr-exit", 10)]


def test_pandas_reads_it(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    frame = pd.read_parquet(tmp_path / "r" / "spans.parquet")
    assert frame["handler_tsc"].isna().sum() == 10


def test_columns_and_rows_can_be_chosen(tmp_path: Path) -> None:
    run = make_recording(tmp_path / "r")
    rows = read_rows(
        tmp_path / "r",
        run,
        "spans",
        ["seq", "handler_tsc"],
        between={"ipi": (4, 1 << 70)},
        equal={"path": "msr-exit"},
    )
    assert [row["seq"] for row in rows] == list(range(5, 30, 2))
    assert [row["handler_tsc"] is None for row in rows][:3] == [True, False, False]
    assert not read_rows(tmp_path / "r", run, "spans", equal={"path": "of tomorrow"})
    assert not read_rows(tmp_path / "r", run, "spans", between={"ipi": (-(1 << 70), -1)})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": np.zeros(1)}, "that have a meaning"),
        ({"when": np.zeros(1, "datetime64[s]")}, "not be readable everywhere"),
    ],
)
def test_columns_that_no_reader_could_use(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with (
        RecordingWriter(tmp_path / "r", force=False) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.append("spans", columns, {"when": "then"})
    assert names_in(tmp_path) == set()


def test_columns_as_programs_have_them(tmp_path: Path) -> None:
    """Parts of records, strings as objects, masks that mask nothing, and no rows at first."""
    records = np.zeros(3, [("flag", "u1"), ("stamp", "u8"), ("cpu", "u2")])
    records["stamp"], records["cpu"] = [1, 2, 1 << 63], 7
    meanings = {"stamp": "when", "cpu": "where", "kind": "what", "ok_tsc": "all known"}

    def columns(part: slice) -> dict[str, Any]:
        return {
            "stamp": records[part]["stamp"],
            "cpu": records[part]["cpu"],
            "kind": np.full(3, "a", dtype=object)[part],
            "ok_tsc": np.ma.masked_equal(np.arange(3)[part], -1),
        }

    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.append("spans", columns(slice(0)), meanings)
        writer.append("spans", columns(slice(3)), meanings)
        writer.finish(empty_run())
    table = read_table(tmp_path / "r", "spans")
    assert table.to_pydict() == {
        "stamp": [1, 2, 1 << 63],
        "cpu": [7, 7, 7],
        "kind": ["a", "a", "a"],
        "ok_tsc": [0, 1, 2],
    }


# Where a recording may go, and what happens to what is there.


def test_without_a_finish_nothing_is_left(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "a" / "b" / "r", force=False)

    def interrupted() -> None:
        with writer:
            writer.append("spans", spans(3), SPAN_MEANINGS)
            assert names_in(tmp_path) == {"a"}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path) == set()


def test_parents_are_made(tmp_path: Path) -> None:
    make_recording(tmp_path / "a" / "b")
    assert names_in(tmp_path / "a") == {"b"}


def test_everybody_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        make_recording(tmp_path / "r")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o755
    for name in FILES:
        assert stat.S_IMODE((tmp_path / "r" / name).stat().st_mode) == 0o644, name


def test_an_empty_directory_is_fine_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_recording(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names_in(tmp_path / "real") == set(FILES)


def test_an_existing_recording_needs_force(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    with pytest.raises(UsageError, match="already holds a recording") as raised:
        RecordingWriter(tmp_path / "r", force=False)
    assert "--force" in raised.value.hint


def test_force_replaces_all_of_it(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    with RecordingWriter(tmp_path / "r", force=True) as writer:
        writer.append("spans", spans(3), SPAN_MEANINGS)
        assert read_run(tmp_path / "r").tables["spans"].rows == 30
        writer.finish(empty_run())
    assert names_in(tmp_path) == {"r"}
    assert names_in(tmp_path / "r") == {RUN_FILE, CHECKSUM_FILE, "spans.parquet"}
    assert read_table(tmp_path / "r", "spans").num_rows == 3


@pytest.mark.parametrize("name", ["thesis.txt", "analysis.parquet"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_is_never_deleted(tmp_path: Path, name: str, *, force: bool) -> None:
    make_recording(tmp_path / "r")
    (tmp_path / "r" / name).write_text("years of work")
    with pytest.raises(UsageError, match="not part of a recording"):
        RecordingWriter(tmp_path / "r", force=force)
    assert names_in(tmp_path / "r") == {*FILES, name}


def test_the_run_json_of_another_program_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text('{"command": "x"}')
    with pytest.raises(UsageError, match="not part of a recording"):
        RecordingWriter(tmp_path, force=True)


def test_what_came_into_the_place_meanwhile_stays_and_so_does_the_recording(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with RecordingWriter(place, force=True) as writer:
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
        with pytest.raises(HostError, match="cannot be moved") as raised:
            writer.finish(empty_run())
    assert names_in(place) == {"thesis.txt"}
    (kept,) = names_in(tmp_path) - {"r"}
    assert str(tmp_path / kept) in raised.value.hint
    assert read_run(tmp_path / kept) == empty_run()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a directory"):
        RecordingWriter(tmp_path / "file", force=True)
    with pytest.raises(HostError, match="cannot be written"):
        RecordingWriter(tmp_path / "file" / "below", force=True).__enter__()
    assert (tmp_path / "file").read_text() == "x"


def test_names_no_file_system_takes(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("x" * 300, "loop/r"):
        with pytest.raises(HostError), RecordingWriter(tmp_path / name, force=False):
            pass
    assert names_in(tmp_path) == {"loop"}


def test_the_current_directory_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the current directory"):
        RecordingWriter(Path(), force=False)


def test_a_mount_point_cannot_be_replaced() -> None:
    mount = next(p for p in map(Path, ("/dev/shm", "/dev/pts", "/proc")) if p.is_mount())
    with pytest.raises(UsageError):
        RecordingWriter(mount, force=True)


def test_the_leftover_of_a_killed_run_with_our_pid_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".r.partial-{os.getpid()}").mkdir()
    make_recording(tmp_path / "r")
    assert names_in(tmp_path) == {"r", f".r.partial-{os.getpid()}"}


# A full disk, a killed run.


@pytest.mark.parametrize("size", [0, 60, 1000, 5000, 19_000])
def test_a_full_disk_leaves_the_old_recording_and_nothing_else(tmp_path: Path, size: int) -> None:
    make_recording(tmp_path / "r")
    before = {name: (tmp_path / "r" / name).read_bytes() for name in FILES}
    noise = spans(5000) | {"seq": np.random.default_rng(1).integers(0, 1 << 60, 5000)}
    with files_no_larger_than(size), pytest.raises(HostError, match="cannot be written") as raised:
        make_recording(tmp_path / "r", force=True, spans=noise)
    assert "Free space" in raised.value.hint
    assert names_in(tmp_path) == {"r"}
    assert {name: (tmp_path / "r" / name).read_bytes() for name in FILES} == before


@pytest.mark.live("root")
def test_a_file_system_without_space(tmp_path: Path) -> None:
    """In a mount namespace of its own; ENOSPC also comes out of Arrow's own writes."""
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from recordings import make_recording, spans
from ipitrace.base.errors import HostError
import numpy as np
place = Path({str(tmp_path)!r}) / "r"
make_recording(place)
noise = np.random.default_rng(1).integers(0, 1 << 60, 100_000)
try:
    make_recording(place, force=True, spans=spans(100_000) | {{"seq": noise}})
except HostError as error:
    print(error.message)
print(sorted(path.name for path in place.parent.iterdir()))
make_recording(place, force=True)
"""
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{mount} && exec "$0" -c "$1"',
        sys.executable,
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "No space left on device" in done.stdout
    assert done.stdout.splitlines()[1] == "['r']"


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
import ipitrace.recording.writer as module
from recordings import *
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
module.ROW_GROUP_ROWS = 10
original = getattr(module, {function!r})
if {function!r} == "_sync":
    module._sync = lambda path: kill() if path.name == "SHA256SUMS" else original(path)
elif {function!r}:
    setattr(module, {function!r}, kill)
with module.RecordingWriter(Path({place!r}), force=True) as writer:
    writer.append("spans", spans(30), SPAN_MEANINGS)
    if not {function!r}:
        kill()
    writer.finish(empty_run())
"""


@pytest.mark.parametrize("function", ["json", "_sha256", "_sync"])
def test_a_killed_run_leaves_the_old_recording_and_says_that_it_was_killed(
    tmp_path: Path, function: str
) -> None:
    old = make_recording(tmp_path / "r", 3)
    program = KILLED.format(path=sys.path, function=function, place=str(tmp_path / "r"))
    if function == "json":  # while rows are being written
        program = program.replace("'json'", "''").replace("getattr(module, '')", "None")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert read_run(tmp_path / "r") == old
    (left,) = names_in(tmp_path) - {"r"}
    assert left.startswith(".r.partial-")
    if function == "_sync":  # all of it was there but its name
        assert read_table(tmp_path / left, "spans").num_rows == 30
        return
    with pytest.raises(UsageError, match=r"unfinished|an incomplete recording") as raised:
        read_run(tmp_path / left)
    assert ("unfinished" in raised.value.message) == (function == "json")


# Damage.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "r"
    make_recording(directory, 5)
    return directory


def answers(directory: Path) -> list[object]:
    """What each reader answers: the data, or that it refuses, in one sentence and a hint."""
    found: list[object] = []
    sentences = []
    for answer in ANSWERS:
        try:
            found.append(answer(directory))
        except UsageError as error:
            found.append(None)
            sentences.append(error.message)
    assert all(len(text.splitlines()) == 1 and text.endswith(".") for text in sentences)
    return found


@functools.cache
def undamaged(directory: Path) -> list[object]:
    good = answers(directory)
    assert None not in good
    return good


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes]]:
    name = draw(st.sampled_from(FILES))
    at = draw(st.floats(0, 1, exclude_max=True))
    if draw(st.booleans()):
        return name, lambda content: content[: int(at * len(content))]
    mask = draw(st.integers(1, 255))

    def flipped(content: bytes) -> bytes:
        i = int(at * len(content))
        return content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :]

    return name, flipped


@given(damages())
@settings(max_examples=25, deadline=None)
def test_damage_is_told_and_never_read_as_data(
    whole: Path, damage: tuple[str, Callable[[bytes], bytes]]
) -> None:
    name, change = damage
    good = undamaged(whole)
    copy = whole.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    bad = answers(copy)
    assert all(b is None or b == g for b, g in zip(bad, good, strict=True))
    assert None in bad


@given(damages())
@settings(max_examples=25, deadline=None)
def test_damage_under_a_right_checksum_ends_in_an_error_or_in_data(
    whole: Path, damage: tuple[str, Callable[[bytes], bytes]]
) -> None:
    name, change = damage
    copy = whole.with_name("sealed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    if name != CHECKSUM_FILE:
        seal(copy)
    answers(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    assert None in answers(tmp_path / "r")


def test_tables_of_two_recordings_do_not_mix(whole: Path, tmp_path: Path) -> None:
    make_recording(tmp_path / "r", 7)
    shutil.copy(whole / "spans.parquet", tmp_path / "r")
    with pytest.raises(UsageError, match="damaged, or was changed"):
        read_rows(tmp_path / "r", read_run(tmp_path / "r"), "spans")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1, "surprise": 1}, "made by a newer ipitrace"),
        ({"schema_version": "1"}, "has no valid schema_version"),
        ({"surprise": 1}, "the key surprise is not known"),
        ({"command": "run"}, "command is str, not an array"),
    ],
)
def test_a_run_json_we_cannot_read_is_told(
    whole: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(whole, tmp_path / "r")
    change_run(tmp_path / "r", **changes)
    with pytest.raises(UsageError, match=message):
        read_run(tmp_path / "r")


def test_a_missing_key_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "r")
    data = json.loads((tmp_path / "r" / RUN_FILE).read_text())
    del data["clock"]
    (tmp_path / "r" / RUN_FILE).write_text(json.dumps(data))
    seal(tmp_path / "r")
    with pytest.raises(UsageError, match="the key clock is missing"):
        read_run(tmp_path / "r")


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"a": 1}', "\udcff"])
def test_some_other_run_json_is_not_a_recording(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(content.encode(errors="surrogateescape"))
    seal(tmp_path)
    with pytest.raises(UsageError, match="is not a recording"):
        read_run(tmp_path)


def test_what_is_not_there_is_told(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no recording"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a recording"):
        read_run(tmp_path)
    run = read_run(whole)
    with pytest.raises(UsageError, match="has no table 'guest_ipis'") as raised:
        read_rows(whole, run, "guest_ipis")
    assert "--no-trace" in raised.value.hint
    with pytest.raises(UsageError, match="has no column 'colour'"):
        read_rows(whole, run, "spans", ["colour"])
    with pytest.raises(UsageError, match="has no column 'colour'"):
        read_rows(whole, run, "spans", equal={"colour": "blue"})


def test_an_interrupted_run_is_kept_and_says_so(tmp_path: Path) -> None:
    run = replace(empty_run(), complete=False, failure="Interrupted.")
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.append("host_events", events(2), EVENT_MEANINGS)
        writer.finish(run)
    kept = read_run(tmp_path / "r")
    assert (kept.complete, kept.failure) == (False, "Interrupted.")
    assert read_table(tmp_path / "r", "host_events").num_rows == 6


def test_the_example_is_whole_and_small() -> None:
    run = read_run(example_dir())
    assert run.complete
    assert run.to_json() == read_run_text(example_dir())
    assert sum(path.stat().st_size for path in example_dir().iterdir()) < 1 << 20
