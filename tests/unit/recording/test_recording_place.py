# SPDX-License-Identifier: Apache-2.0
"""Where a recording may go, what happens to what is there, and what a failure leaves."""

# SPDX-License-Identifier: Apache-2.0
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recordings import (
    FILES,
    SPAN_MEANINGS,
    empty_run,
    make_recording,
    names_in,
    read_table,
    spans,
)

from ipitrace.base.errors import HostError, UsageError
from ipitrace.recording.reader import read_run
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write further, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
