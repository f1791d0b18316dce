# SPDX-License-Identifier: Apache-2.0
"""No recording that comes with ipitrace holds a number for what is not known."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from recorded import recorded_traces
from recordings import read_table
from unknowns import unknowns_as_numbers

from ipitrace.commands.report import report
from ipitrace.correlate.spans import correlate
from ipitrace.measure.columns import RepetitionKey, host_event_columns, span_columns
from ipitrace.recording.reader import read_rows, read_run
from ipitrace.recording.writer import CHECKSUM_FILE
from ipitrace.words.events import Kind

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    path.parent
    for place in ("tests", "lab", "docs")
    for path in (ROOT / place).rglob("run.json")
    if (path.parent / "SHA256SUMS").exists()
)
MICRO = ROOT / "tests/data/recordings/micro-pvm"
EXITS = ("sender_exits", "target_exits")


def seal(recording: Path) -> None:
    """Make its checksums anew."""
    files = [path for path in sorted(recording.iterdir()) if path.name != CHECKSUM_FILE]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (recording / CHECKSUM_FILE).write_text("".join(lines))


def test_there_are_recordings() -> None:
    assert {"micro-pvm", "amd-tcg", "intel-bochs"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("recording", SHIPPED, ids=lambda path: path.name)
def test_what_is_not_known_is_null(recording: Path) -> None:
    assert unknowns_as_numbers(recording) == []


def test_exits_that_nothing_counted_are_null() -> None:
    """On a KVM where kvm_exit never fires; the spans are made anew from the events."""
    for scenario, repetition, trace in recorded_traces(MICRO):
        columns = span_columns(RepetitionKey(scenario, repetition), correlate(trace), 0)
        for name in EXITS:
            column = pa.array(columns[name])
            assert (column.type, column.null_count) == (pa.int32(), len(column))
        return


def test_a_detail_that_the_kernel_does_not_tell_is_null() -> None:
    _scenario, _repetition, trace = next(iter(recorded_traces(MICRO)))
    trace.events["kind"][:3] = Kind.VMX_DELIVER_INTERRUPT
    trace.events["detail"][:3] = (0, 0xEC, 0)
    columns = host_event_columns(RepetitionKey("self", 0), trace)
    told = np.ma.asanyarray(columns["detail"]).tolist()
    kinds = columns["kind"].tolist()
    of_these = [d for d, k in zip(told, kinds, strict=True) if k == "vmx_deliver_interrupt"]
    assert sorted(of_these, key=str) == [0xEC, None, None]
    assert told.count(None) == 2


def test_an_ipi_with_an_event_of_unknown_vector_is_told() -> None:
    recording = ROOT / "tests/data/recordings/passthrough-off"
    done = CliRunner().invoke(report, [str(recording), "--ipi", "1"])
    assert "vmx_deliver_interrupt vector not known" in done.output


def test_zeros_of_an_older_recording_are_read_as_unknown(tmp_path: Path) -> None:
    """As ipitrace wrote them until then; where kvm_exit fires a zero is a count."""
    old = tmp_path / "old"
    shutil.copytree(MICRO, old)
    table = read_table(old, "spans")
    for name in EXITS:
        zeros = pa.array(np.zeros(len(table), np.int32))
        table = table.set_column(table.schema.get_field_index(name), name, zeros)
    pq.write_table(table, old / "spans.parquet")
    seal(old)
    assert unknowns_as_numbers(old)  # so the check sees what it is for
    rows = read_rows(old, read_run(old), "spans", between={"ipi": (0, 9)})
    assert [row[name] for row in rows for name in EXITS] == [None] * 20

    document = json.loads((old / "run.json").read_text())
    for row in document["scenarios"]:
        row["exits"]["source"] = "kvm_exit tracepoint"
    (old / "run.json").write_text(json.dumps(document))
    seal(old)
    rows = read_rows(old, read_run(old), "spans", between={"ipi": (0, 9)})
    assert [row[name] for row in rows for name in EXITS] == [0] * 20
