# SPDX-License-Identifier: Apache-2.0
"""Recordings that were made to harm: what `report` and `compare` need for them is bounded.

Each command runs by itself, so that its memory can be measured.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from recordings import make_recording, read_table, some_run, spans

from ipitrace.base.errors import ExitCode, UsageError
from ipitrace.commands.compare import compare
from ipitrace.commands.report import report
from ipitrace.measure.lookout import _MOST_NOTED
from ipitrace.measure.request import MAX_OF_ALL_SCENARIOS
from ipitrace.recording.frames import open_recording
from ipitrace.recording.reader import read_run
from ipitrace.recording.result import Disturbance
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

MOST_MIB = 512
PLENTY_S = 60
MANY_ROWS = 20_000_000
LONG_TEXT = 300 << 20
RECORDED = Path(__file__).parents[2] / "data/recordings/amd-tcg"


@dataclass(frozen=True)
class Done:
    code: int
    error: str
    peak_mib: int


def ipitrace(*words: object) -> Done:
    """Run the command; its exit code, and the most memory it or its child had at a time."""
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
    )
    command = [sys.executable, "-m", "ipitrace", *map(str, words)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=PLENTY_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    code, peak_mib = map(int, done.stdout.split())
    return Done(code, done.stderr, peak_mib)


def refused(*words: object) -> str:
    """What the command says, in one sentence and a hint, with exit code 2."""
    done = ipitrace(*words)
    assert done.code == ExitCode.USAGE, done
    assert len(done.error.splitlines()) == 2, done.error
    assert len(done.error) < 1000
    assert done.peak_mib < MOST_MIB
    return done.error


def said_here(*words: object) -> str:
    """As refused(), in this process: for what is too small to need much."""
    command = {"report": report, "compare": compare}[str(words[0])]
    error = CliRunner().invoke(command, list(map(str, words[1:]))).exception
    assert isinstance(error, UsageError), error
    assert "\n" not in error.message
    assert len(error.message) < 1000
    return error.message


def seal(directory: Path) -> None:
    paths = [path for path in sorted(directory.iterdir()) if path.name != CHECKSUM_FILE]
    digests = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in paths]
    (directory / CHECKSUM_FILE).write_text("".join(digests))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    make_recording(tmp_path / "r", run=some_run(started_at="2026-02-03T04:05:06+00:00"))
    return tmp_path / "r"


def put_spans(recording: Path, table: pa.Table, **how: Any) -> Path:
    """Replace the spans by others, and have everything else agree."""
    path = recording / "spans.parquet"
    pq.write_table(table, path, compression="zstd", **how)
    change_run(recording, lambda run: run["tables"]["spans"].update(rows=len(table)))
    return path


def change_run(recording: Path, change: Callable[[Any], object]) -> None:
    run = json.loads((recording / RUN_FILE).read_text())
    change(run)
    (recording / RUN_FILE).write_text(json.dumps(run))
    seal(recording)


# Tables.


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


# run.json.


def test_a_run_json_that_grows_when_parsed(recording: Path) -> None:
    """Before: 1.8 GiB and 20 s for 20 MiB in `compare`, and worse made otherwise."""
    text = (recording / RUN_FILE).read_text()
    for n, said in ((7_000_000, "more than 16 MiB"), (2_000_000, "more than 600000 values")):
        (recording / RUN_FILE).write_text(
            text.replace('"fingerprint": {}', '"fingerprint": {"x": [' + "[]," * n + "[]]}")
        )
        seal(recording)
        assert said in refused("report", recording)
        assert said in said_here("compare", recording, recording)
        assert said in said_here("compare", recording / RUN_FILE, recording / RUN_FILE)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("9" * 5000, "out of range"),
        ("1" + "0" * 400, "out of range"),
        (str(2**64), "out of range"),
        ("1e999", "out of range"),
        ("NaN", "out of range"),
        ("-Infinity", "out of range"),
        ('"\\ud800"', "not Unicode"),
        ('"' + "x" * 1_000_000 + '"', "more than 16384 characters"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ('{"a\\nb": 1}', "a key that is not a name"),
        ('{"' + "x" * 300 + '": 1}', "a key that is not a name"),
    ],
)
def test_values_that_json_has_and_nobody_expects(recording: Path, what: str, said: str) -> None:
    text = (recording / RUN_FILE).read_text()
    (recording / RUN_FILE).write_text(
        text.replace('"fingerprint": {}', f'"fingerprint": {{"x": {what}}}')
    )
    seal(recording)
    for words in (("report", recording), ("compare", recording, recording)):
        assert said in said_here(*words)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run["clock"].update(half_width_ns=1.0, half_width_cycles=None),
        lambda run: run["scenarios"][0].update(
            stages={"spans": 0, "bound_cycles": 0, "sequences": [], "steps": []}
        ),
    ],
)
def test_values_that_do_not_fit_together(recording: Path, change: Callable[[Any], object]) -> None:
    change_run(recording, change)
    assert "is damaged" in said_here("report", recording)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run["host"].clear(), "the key host.one_line is missing"),
        (lambda run: run["host"].update(pinning=[]), "host.pinning is list, not an object"),
        (lambda run: run["guest"].clear(), "the key guest.kind is missing"),
        (lambda run: run["guest"].update(pinned_cpus=7), "guest.pinned_cpus is int, not an array"),
        (lambda run: run["host"].update(fingerprint=[]), "host.fingerprint is list, not an object"),
        (
            lambda run: run["host"].update(fingerprint={"kernel_release": 6}),
            "host.fingerprint.kernel_release is int, not str",
        ),
        (
            lambda run: run["host"].update(fingerprint={"emulated": {}}),
            "host.fingerprint.emulated is dict, not str",
        ),
        (
            lambda run: run["host"].update(neighbours={"kvm_processes": [{"pid": 7}]}),
            "the key host.neighbours.kvm_processes[0].name is missing",
        ),
        (lambda run: run["guest"].update(emulated=True), "guest.emulated is bool, not str"),
    ],
)
def test_a_host_and_a_guest_of_another_form(
    recording: Path, change: Callable[[Any], object], said: str
) -> None:
    change_run(recording, change)
    assert said in said_here("report", recording)
    for kind in ("table", "csv", "openmetrics", "junit", "markdown", "json"):
        assert said in said_here("compare", recording, recording, "--format", kind)


def test_an_exit_reason_without_a_name(tmp_path: Path) -> None:
    """It would be taken for the sum of all reasons."""
    run = json.loads((RECORDED / RUN_FILE).read_text())
    for figures in run["scenarios"][0]["repetition_figures"]:
        if figures["exits"]:
            figures["exits"]["sender"][""] = 0.5
    given = tmp_path / "some.json"
    given.write_text(json.dumps(run))
    for words in (("report", given), ("compare", given, given, "--fail-on", "exits:+0.1")):
        assert "an exit reason or a path has no name" in said_here(*words)


def test_more_scenarios_than_can_be(recording: Path) -> None:
    change_run(recording, lambda run: run.update(scenarios=run["scenarios"] * 1001))
    assert "more than 1000 scenarios" in said_here("report", recording)


# Files that are none.


@pytest.mark.parametrize("name", [RUN_FILE, CHECKSUM_FILE, "spans.parquet"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "loop", "endless"])
def test_what_is_no_file_is_never_waited_for(recording: Path, name: str, kind: str) -> None:
    path = recording / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    refused("report", recording, "--ipi", 3)
    if name == RUN_FILE:
        said_here("compare", recording, recording)
        said_here("compare", path, path)


def test_a_directory_of_too_much(tmp_path: Path) -> None:
    for n in range(10_001):
        (tmp_path / str(n)).touch()
    said = said_here("compare", tmp_path, tmp_path)
    assert "is too large: it has more than 10000 entries" in said


# Gates.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = " + b"[" * 10_000, "recursion"),
        (b"a = " + b"{a=" * 5_000, "recursion"),
        (b"#" * (17 << 10), "more than 16 KiB"),
        (b"\xff", "can't decode"),
        (b"fail-on = [" + b"9" * 5000 + b"]", "digits"),
        (b'fail-on = ["deliver.p50:+' + b"9" * 400 + b'%"]', "is not a gate"),
    ],
)
def test_gates_that_harm(recording: Path, tmp_path: Path, content: bytes, said: str) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_bytes(content)
    assert said in said_here("compare", recording, recording, "--gates", gates)


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_gates_that_are_no_file(recording: Path, tmp_path: Path, kind: str) -> None:
    gates = tmp_path / "gates.toml"
    if kind == "fifo":
        os.mkfifo(gates)
    elif kind == "device":
        gates.symlink_to("/dev/zero")
    else:
        gates.mkdir()
    assert "cannot be read" in said_here("compare", recording, recording, "--gates", gates)


@pytest.mark.parametrize("limit", ["9" * 400, "1e5", "0" * 10_000])
@pytest.mark.parametrize("option", ["--fail-on=deliver.p50:+", "--min-effect="])
def test_limits_that_are_no_numbers(recording: Path, option: str, limit: str) -> None:
    said_here("compare", recording, recording, f"{option}{limit}%")


def test_the_largest_run_that_is_taken_can_be_read(tmp_path: Path) -> None:
    run = read_run(Path(__file__).parents[2] / "data" / "recordings" / "intel-bochs")
    n_scenarios, repetitions = 4, MAX_OF_ALL_SCENARIOS // 4
    rows = []
    for i in range(n_scenarios):
        figures = run.scenarios[0].repetition_figures
        many = tuple(figures[j % len(figures)] for j in range(3 * repetitions))
        rows.append(replace(run.scenarios[0], name=f"s{i}", repetition_figures=many))
    noted = Disturbance(
        "waited", "vCPU 1's thread waited 10 ms for a CPU", worthless=False, share=0.1,
        scenario="s0", repetition=1, mode="counting",
    )  # fmt: skip
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        written = writer.finish(
            replace(run, scenarios=tuple(rows), disturbances=(noted,) * _MOST_NOTED, tables={})
        )
    assert read_run(tmp_path / "r") == written
