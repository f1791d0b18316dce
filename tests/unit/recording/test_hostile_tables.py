# SPDX-License-Identifier: Apache-2.0
"""Tables that were made to harm: what `report` and `compare` need for them is bounded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_recordings import (
    LONG_TEXT,
    MANY_ROWS,
    PLENTY_S,
    RECORDED,
    change_run,
    put_spans,
    refused,
    said_here,
    seal,
)
from recordings import make_recording, read_table, some_run, spans

from ipitrace.base.errors import UsageError
from ipitrace.recording.frames import open_recording


def test_rows_that_take_no_room_in_the_file(recording: Path) -> None:
    """Before: 12.8 GiB for 60 M rows in a file of 2.4 MiB."""
    zeros = pa.array(np.zeros(MANY_ROWS, np.int64))
    names = [name for name in spans(1) if name not in {"scenario", "path"}]
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MANY_ROWS, np.int32)), ["unicast"])
    columns = dict.fromkeys(names, zeros) | dict.fromkeys(("scenario", "path"), texts)
    path = put_spans(recording, pa.table(columns), row_group_size=MANY_ROWS)
    assert path.stat().st_size < 2 << 20
    assert f"row group of {MANY_ROWS} rows" in refused("report", "--ipi", 0, recording)
    put_spans(recording, pa.table(columns), row_group_size=1 << 20)
    assert "more than 50000 rows" in refused("report", "--ipi", 0, recording)


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a file of some KiB."""
    recording = tmp_path_factory.mktemp("long") / "r"
    make_recording(recording, run=some_run())
    table = read_table(recording, "spans")
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(table), np.int32)), pa.array(["a" * LONG_TEXT])
    )
    path = put_spans(recording, table.set_column(1, "scenario", texts))
    assert path.stat().st_size < 256 << 10
    return recording


@pytest.fixture
def with_long_text(long_text: Path, tmp_path: Path) -> Path:
    shutil.copytree(long_text, tmp_path / "long")
    return tmp_path / "long"


def test_a_dictionary_that_takes_no_room_in_the_file(with_long_text: Path) -> None:
    said = refused("report", "--ipi", 0, with_long_text)
    assert "column 'scenario' is too large when decompressed" in said


def varint(number: int, length: int = 0) -> bytes:
    """As Thrift's compact protocol writes an i64, made as long as wanted."""
    number <<= 1
    octets = []
    while number >= 0x80 or len(octets) + 1 < length:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def test_a_footer_that_lies_about_it(with_long_text: Path) -> None:
    """What nobody can tell beforehand ends at the limit of the decoding process."""
    path = with_long_text / "spans.parquet"
    size = pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    true = varint(size)
    assert content[footer:].count(true) == 1
    path.write_bytes(content[:footer] + content[footer:].replace(true, varint(100, len(true))))
    seal(with_long_text)
    assert pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size == 100
    assert "cannot be read" in refused("report", "--ipi", 0, with_long_text)


def test_a_decoder_that_never_ends_is_stopped(recording: Path, tmp_path: Path) -> None:
    """The decoder's place is taken by one that hangs, and by one that talks without an end."""
    for i, program in enumerate(("while True: pass", "while True: print('x' * 99999)")):
        script = (
            "import sys; from pathlib import Path; import ipitrace.recording.reader as r\n"
            "from ipitrace.base.errors import UsageError\n"
            "limits = 'from ipitrace.recording.decoder import restrict; restrict(1)\\n'\n"
            f"r._DECODER = 'import sys; sys.path.insert(0, sys.argv[1]);' + limits + {program!r}\n"
            "run = r.read_run(Path(sys.argv[1]))\n"
            "try: r.read_rows(Path(sys.argv[1]), run, 'spans')\n"
            "except UsageError as error: print(error.message)\n"
        )
        path = tmp_path / f"{i}.py"
        path.write_text(script)
        command = [sys.executable, path, recording]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PLENTY_S, check=True)
        assert "in bounded time and memory" in done.stdout, done.stderr


def test_the_decoding_process_can_do_little() -> None:
    """Not even read a file of root's, or write any."""
    script = (
        "import json, os, resource\n"
        "from ipitrace.recording.decoder import restrict\n"
        "restrict(7)\n"
        "print(json.dumps([os.geteuid(), resource.getrlimit(resource.RLIMIT_CPU)[1],\n"
        "    resource.getrlimit(resource.RLIMIT_FSIZE)[1],\n"
        "    resource.getrlimit(resource.RLIMIT_AS)[1],\n"
        "    [line for line in open('/proc/self/status') if line.startswith('NoNewPrivs')][0]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    uid, cpu_s, file_bytes, memory_bytes, no_new = json.loads(done.stdout)
    assert uid == (65534 if os.geteuid() == 0 else os.geteuid())
    assert (cpu_s, file_bytes) == (7, 0)
    assert memory_bytes < 2 << 30
    assert no_new.split() == ["NoNewPrivs:", "1"]


@pytest.mark.parametrize(
    "changes", [{125650: 48, 128399: 103}, {125650: 127, 129658: 48}], ids=["48", "127"]
)
def test_two_bytes_of_a_footer_that_kept_the_decoder_busy(
    tmp_path: Path, changes: dict[int, int]
) -> None:
    recording = tmp_path / "r"
    shutil.copytree(RECORDED.with_name("micro-pvm"), recording)
    path = recording / "spans.parquet"
    content = bytearray(path.read_bytes())
    for at, octet in changes.items():
        content[at] = octet
    path.write_bytes(content)
    seal(recording)
    assert "cannot be read" in refused("report", "--ipi", 5, recording)


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("seq", pa.array([0.5] * 30), "column 'seq' is not of the type integer"),
        ("send_tsc", pa.array(["x"] * 30), "column 'send_tsc' is not of the type integer"),
        ("path", pa.array([1] * 30), "column 'path' is not of the type text"),
        ("path", pa.array([b"\xff"] * 30, pa.binary()), "column 'path' is not of the type text"),
        ("sender", pa.array([[1]] * 30), "cannot be read"),
        ("sender", pa.array([None] * 30, pa.int16()), "value of its column 'sender' is missing"),
        ("path", pa.array(["x" * 5000] * 30), "value of its column 'path' is too long"),
        ("colour", pa.array([1] * 30), "column 'colour', which this version does not know"),
    ],
)
def test_columns_of_another_type(recording: Path, name: str, column: pa.Array, said: str) -> None:
    table = read_table(recording, "spans")
    if name in table.column_names:
        table = table.drop_columns([name])
    put_spans(recording, table.append_column(name, column))
    assert said in said_here("report", "--ipi", 3, recording)


@pytest.mark.parametrize("name", ["ipi", "scenario", "repetition", "send_tsc", "sender", "path"])
def test_a_column_that_is_not_there(recording: Path, name: str) -> None:
    put_spans(recording, read_table(recording, "spans").drop_columns([name]))
    said_here("report", "--ipi", 3, recording)


def scenarios_of(*values: object) -> Callable[[pa.Table], pa.Table]:
    """Put other values into the column `scenario`."""
    column = pa.array(list(values) * 30)
    return lambda table: table.drop_columns(["scenario"]).append_column("scenario", column)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["scenario"]),
        scenarios_of({"a": 1}),
        scenarios_of([1]),
        scenarios_of(b"\xff"),
        scenarios_of(1),
    ],
)
@pytest.mark.parametrize("columns", [None, ["sender_exits"]])
def test_programs_get_no_exits_without_scenarios(
    recording: Path, change: Callable[[pa.Table], pa.Table], columns: list[str] | None
) -> None:
    table = read_table(recording, "spans").append_column("sender_exits", pa.array([0] * 30))
    put_spans(recording, change(table))
    opened = open_recording(recording)
    assert opened.table("spans", ["ipi"]).num_rows == 30
    with pytest.raises(UsageError, match="scenario"):
        opened.table("spans", columns)


def test_programs_get_exits_of_any_integer_type(recording: Path) -> None:
    counts = pa.array([(1 << 64) - 1, 0] * 15, pa.uint64())
    table = read_table(recording, "spans")
    put_spans(recording, table.append_column("sender_exits", counts))
    assert open_recording(recording).table("spans", ["sender_exits"])[0][0].as_py() == (1 << 64) - 1


@pytest.mark.parametrize("metadata", [b"{", b"\xff", b"[]", b'{"index_columns": ["nope"]}'])
def test_a_table_cannot_say_how_pandas_shows_it(recording: Path, metadata: bytes) -> None:
    pytest.importorskip("pandas")
    table = read_table(recording, "spans").replace_schema_metadata({b"pandas": metadata})
    put_spans(recording, table)
    frame = open_recording(recording).data_frame("spans")
    assert list(frame.columns) == table.column_names


@pytest.mark.parametrize("part", [("order",), ("send_cycles", "p50")])
def test_figures_larger_than_their_column(tmp_path: Path, part: tuple[str, ...]) -> None:
    recording = tmp_path / "r"
    shutil.copytree(RECORDED, recording)

    def enlarge(run: Any) -> None:
        *outer, last = part
        inner = run["scenarios"][0]["repetition_figures"][0]
        for key in outer:
            inner = inner[key]
        inner[last] = 1 << 63

    change_run(recording, enlarge)
    with pytest.raises(UsageError, match="not consistent"):
        open_recording(recording).figures()


def test_run_json_and_the_table_must_agree(recording: Path) -> None:
    change_run(recording, lambda run: run["tables"]["spans"].update(rows=31))
    assert "it has 30 rows, but run.json states 31" in said_here("report", "--ipi", 3, recording)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400, -1])
def test_a_number_no_ipi_has(recording: Path, number: int) -> None:
    said_here("report", recording, "--ipi", number)
