# SPDX-License-Identifier: Apache-2.0
"""What a terminal really gets, and streams that cannot be written."""

import hashlib
import json
import os
import pty
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from commands import ENVIRONMENT, IPITRACE, ipi
from comparisons import steady
from hostile import SAMPLES
from recordings import make_recording
from runs import made_run

from ipitrace.base.errors import ExitCode
from ipitrace.base.resources import example_dir
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

# Half a surrogate pair is refused when a recording is read.
HOSTILE = "".join(SAMPLES).encode(errors="ignore").decode()


@pytest.fixture
def hostile_recording(tmp_path: Path) -> Path:
    """As a stranger may have written it; its run.json has the characters themselves."""
    run = replace(
        made_run(), untrustworthy=(HOSTILE,), complete=False, failure=HOSTILE, command=(HOSTILE,)
    )
    run = replace(run, host=replace(run.host, one_line=HOSTILE))
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.finish(run)
    return tmp_path / "r"


def on_terminal(*words: str, **environment: str) -> bytes:
    """What a terminal gets on both streams."""
    main, sub = pty.openpty()
    with subprocess.Popen(
        [*IPITRACE, *words], stdin=sub, stdout=sub, stderr=sub, env=ENVIRONMENT | environment
    ) as process:
        os.close(sub)
        got = b""
        while True:
            try:
                more = os.read(main, 1 << 16)
            except OSError:  # EIO: all of it is closed
                break
            if not more:
                break
            got += more
        process.wait(60)
    os.close(main)
    return got


def assert_no_controls(got: bytes) -> None:
    text = got.decode().replace("\r\n", "\n")  # the terminal's own line discipline
    assert text.replace("\n", "").isprintable(), ascii(text)


@pytest.mark.parametrize("how", [(), ("-v",), ("--json",)])
def test_no_control_reaches_a_terminal(hostile_recording: Path, how: tuple[str, ...]) -> None:
    got = on_terminal("report", str(hostile_recording), *how, NO_COLOR="1")
    assert rb"\x1b" in got or rb"\u001b" in got
    assert_no_controls(got)
    styled = on_terminal("report", str(hostile_recording), *how, TERM="xterm", NO_COLOR="")
    assert OWN_STYLES.sub(b"", styled) == got


OWN_STYLES = re.compile(rb"\x1b\[(?:1|35|1;31|0)m")


def test_nor_by_a_run_json_that_has_them_as_they_are(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", 1)
    path = tmp_path / "r" / RUN_FILE
    said = json.loads(path.read_text()) | {"command": ["\x7f\x9b31m\u202e\u200b \u00e9"]}
    path.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    names = sorted({p.name for p in path.parent.iterdir()} - {CHECKSUM_FILE})
    sums = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in names}
    (path.parent / CHECKSUM_FILE).write_text("".join(f"{sums[n]}  {n}\n" for n in names))
    got = on_terminal("report", str(path.parent), "--json")
    assert_no_controls(got)
    assert json.loads(got) == said


@pytest.mark.parametrize("text", SAMPLES[:12])
def test_errors_show_no_controls(tmp_path: Path, text: str) -> None:
    name = text.replace("\x00", "").encode("utf-8", "replace")
    got = on_terminal("report", os.fsdecode(bytes(tmp_path) + b"/no" + name))
    assert b"There is no recording" in got
    assert_no_controls(got)
    first, *rest = got.decode().splitlines()
    assert first.startswith("ipitrace: ")
    assert all(line.startswith(" ") for line in rest)


def test_a_full_standard_output_is_told(example: str) -> None:
    for words in (("report", example), ("report", example, "--json"), ("scenarios",), ("--help",)):
        with Path("/dev/full").open("w") as full:
            done = ipi(*words, stdout=full)
        assert done.returncode == ExitCode.ENVIRONMENT, words
        assert "pace left" in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_a_full_standard_error_changes_no_exit_code(example: str) -> None:
    with Path("/dev/full").open("w") as full:
        assert ipi("report", "/nowhere", stderr=full).returncode == ExitCode.USAGE
        assert ipi("report", "--what", stderr=full).returncode == ExitCode.USAGE
        assert ipi("report", example, stderr=full).returncode == ExitCode.OK
        assert ipi("report", example, stdout=full, stderr=full).returncode == ExitCode.ENVIRONMENT


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1), (0, 1, 2)])
def test_closed_streams(example: str, tmp_path: Path, closed: tuple[int, ...]) -> None:
    said = tmp_path / "said"
    done = ipi(
        *("compare", example, example, "--output", said),
        before=lambda: [os.close(number) for number in closed],
        stdin=subprocess.PIPE,
    )
    # The verdict cannot be printed where standard output is closed; the file is written.
    assert done.returncode == (ExitCode.ENVIRONMENT if 1 in closed else ExitCode.OK)
    assert "Traceback" not in done.stderr
    assert "\nInconclusive: " in said.read_text()
    assert "ipitrace:" not in said.read_text()


def test_a_reader_that_left_is_no_failure(example: str) -> None:
    for words in (("report", example), ("report", example, "--json"), ("--help",), ("scenarios",)):
        reading, writing = os.pipe()
        os.close(reading)
        done = ipi(*words, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (ExitCode.OK, "")


def test_the_verdict_stands_although_the_reader_left(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.5)):
        with RecordingWriter(tmp_path / name, force=False) as writer:
            writer.finish(steady(factor=factor))
    reading, writing = os.pipe()
    os.close(reading)
    done = ipi("compare", tmp_path / "a", tmp_path / "b", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.REGRESSION, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_another_encoding(tmp_path: Path, encoding: str) -> None:
    run = made_run(host=replace(made_run().host, one_line="\u6f22 \u00e9"))
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.finish(run)
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = ipi("report", tmp_path / "r", env=environment, text=False)
    assert done.returncode == 0
    wanted = "\u6f22 \u00e9".encode(encoding, "backslashreplace")
    assert wanted in done.stdout


@pytest.fixture
def example() -> str:
    return str(example_dir())
