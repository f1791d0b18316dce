# SPDX-License-Identifier: Apache-2.0
"""A recording is read as it was written, by ipitrace and by other programs."""

# SPDX-License-Identifier: Apache-2.0
import json
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
    FILES,
    SPAN_MEANINGS,
    empty_run,
    make_recording,
    names_in,
    read_table,
    spans,
    values_of,
)

import ipitrace.recording.writer as recording_module
from ipitrace.base.resources import example_dir
from ipitrace.recording.reader import read_rows, read_run
from ipitrace.recording.result import SCHEMA_VERSION, RunResult
from ipitrace.recording.writer import RecordingWriter


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
