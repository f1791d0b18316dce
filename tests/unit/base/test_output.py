# SPDX-License-Identifier: Apache-2.0
"""Where files go and whose they are: as root beside a real other user, with real links."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ENVIRONMENT, ipi
from other_user import NOBODY, as_user, open_folder
from recordings import empty_run, make_recording, spans

from ipitrace.base.errors import ExitCode, HostError, UsageError
from ipitrace.base.output import append_file, locate, replace_file
from ipitrace.base.resources import example_dir
from ipitrace.recording.reader import read_run
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

EXAMPLE = str(example_dir())
THEIRS = NOBODY
PERSON = 12345
root = pytest.mark.live("root")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp: everybody may write to it, and only remove what is theirs."""
    with open_folder() as folder:
        made = folder / "shared"
        made.mkdir()
        made.chmod(0o1777)
        yield made


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    path.chmod(0o600)
    return path


@pytest.fixture
def _behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(PERSON))
    monkeypatch.setenv("SUDO_GID", str(PERSON + 1))


def link_of(uid: int, path: Path, target: object) -> None:
    path.symlink_to(str(target))
    os.lchown(path, uid, uid)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# Links.


@root
@pytest.mark.parametrize("write", [replace_file, append_file])
def test_a_link_of_another_user_is_not_followed(write: object, shared: Path, victim: Path) -> None:
    link_of(THEIRS, shared / "report", victim)
    assert callable(write)
    with pytest.raises(UsageError, match=f"a symbolic link of user {THEIRS} in a directory"):
        write(shared / "report", "x")
    assert victim.read_text() == "precious"


@root
def test_nor_one_on_the_way(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link_of(THEIRS, shared / "folder", tmp_path / "etc")
    for path in (shared / "folder" / "new", shared / "folder" / "a" / "b"):
        with pytest.raises(UsageError, match="a symbolic link of user"):
            replace_file(path, "x")
        with pytest.raises(UsageError, match="a symbolic link of user"):
            RecordingWriter(path, force=False)
    assert names_in(tmp_path / "etc") == set()


@root
def test_nor_one_that_our_own_link_leads_to(shared: Path, tmp_path: Path, victim: Path) -> None:
    link_of(THEIRS, shared / "theirs", victim)
    (tmp_path / "ours").symlink_to(shared / "theirs")
    with pytest.raises(UsageError, match="a symbolic link of user"):
        replace_file(tmp_path / "ours", "x")


@root
@pytest.mark.usefixtures("_behind_sudo")
def test_links_of_root_and_of_the_person_behind_sudo_are_followed(
    shared: Path, tmp_path: Path
) -> None:
    for uid in (0, PERSON):
        link_of(uid, shared / f"l{uid}", tmp_path / f"t{uid}")
        replace_file(shared / f"l{uid}", "x")
        assert (shared / f"l{uid}").is_symlink()
        assert (tmp_path / f"t{uid}").read_text() == "x"


def test_links_where_nobody_else_can_write_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one" / "deep" / ".." / "deep")
    (tmp_path / "file").symlink_to("two/../deep/out")
    replace_file(tmp_path / "file", "x")
    assert (tmp_path / "real" / "deep" / "out").read_text() == "x"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(tmp_path / "loop", "x")


@root
@pytest.mark.parametrize("words", [("--output",), ("--github-summary",)])
def test_compare_says_so(shared: Path, victim: Path, words: tuple[str, ...]) -> None:
    link_of(THEIRS, shared / "out", victim)
    summary = {"GITHUB_STEP_SUMMARY": str(shared / "out")}
    more = [*words, shared / "out"] if words == ("--output",) else words
    done = ipi("compare", EXAMPLE, EXAMPLE, *more, env=ENVIRONMENT | summary)
    assert done.returncode == ExitCode.USAGE
    assert "a symbolic link of user 65534" in done.stderr
    assert victim.read_text() == "precious"


@root
@pytest.mark.live("kvm")
@pytest.mark.parametrize("place", ["link", "link/deep/er"])
def test_run_says_so(shared: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "etc").mkdir()
    link_of(THEIRS, shared / "link", tmp_path / "etc")
    done = ipi("run", "--no-trace", "-o", shared / place)
    assert done.returncode == ExitCode.USAGE
    assert "a symbolic link of user 65534" in done.stderr
    assert names_in(tmp_path / "etc") == set()


RACE = """
import os, sys
folder, target = sys.argv[1:]
os.chdir(folder)
while True:
    for make in (lambda: os.symlink(target, "x"), lambda: os.mkdir("x")):
        try:
            make()
        except OSError:
            pass
        for remove in (os.unlink, os.rmdir):
            try:
                remove("x")
            except OSError:
                pass
"""


@root
def test_nobody_wins_a_race(shared: Path, tmp_path: Path) -> None:
    """Another user swaps a folder for a link, as fast as can be, while files go there."""
    precious = tmp_path / "precious"
    precious.mkdir()
    process = subprocess.Popen([*as_user(THEIRS), sys.executable, "-c", RACE, shared, precious])
    refused = 0
    try:
        for _ in range(2000):
            try:
                replace_file(shared / "x" / "file", "x")
            except (OSError, UsageError):
                refused += 1
    finally:
        process.kill()
        process.wait()
    assert names_in(precious) == set()
    assert refused


# Hard links, pipes, devices.


def test_a_hard_link_is_replaced_and_not_written_through(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "out").hardlink_to(victim)
    replace_file(tmp_path / "out", "x")
    assert victim.read_text() == "precious"
    assert (tmp_path / "out").read_text() == "x"


@root
def test_nothing_is_appended_to_a_hard_link_that_others_could_make(
    shared: Path,
) -> None:
    victim = shared.parent / "victim"
    victim.write_text("precious")
    (shared / "out").hardlink_to(victim)
    with pytest.raises(UsageError, match="a hard link of user 0"):
        append_file(shared / "out", "x")
    assert victim.read_text() == "precious"


@root
def test_a_pipe_of_another_user_is_not_written_to(shared: Path) -> None:
    os.mkfifo(shared / "out")
    os.chown(shared / "out", THEIRS, THEIRS)
    with pytest.raises(UsageError, match="a pipe or device of user"):
        replace_file(shared / "out", "x")


def test_our_own_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "out").read_text()))
    reader.start()
    replace_file(tmp_path / "out", "x" * 100_000)
    reader.join()
    assert got == ["x" * 100_000]
    assert stat.S_ISFIFO((tmp_path / "out").stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr"])
def test_standard_streams_are_places_too(tmp_path: Path, name: str) -> None:
    done = ipi("compare", EXAMPLE, EXAMPLE, "--format", "json", "--output", name)
    document = done.stderr if name == "/dev/stderr" else done.stdout
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.JSONDecoder().raw_decode(document)[0]["comparisons"]
    with (tmp_path / "out").open("w") as out:
        ipi(
            "compare",
            EXAMPLE,
            EXAMPLE,
            "--format",
            "json",
            "--output",
            name,
            stdout=out,
            stderr=out,
        )
    document = (tmp_path / "out").read_text()
    assert json.JSONDecoder().raw_decode(document)[0]["comparisons"]


def test_devices_stay_devices() -> None:
    before = Path("/dev/null").stat()
    assert ipi("compare", EXAMPLE, EXAMPLE, "--output", "/dev/null").returncode == ExitCode.OK
    assert os.path.samestat(Path("/dev/null").stat(), before)
    done = ipi("compare", EXAMPLE, EXAMPLE, "--output", "/dev/full")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "/dev/full cannot be written: No space left on device" in done.stderr


# Owners and modes.


@root
@pytest.mark.usefixtures("_behind_sudo")
def test_what_is_made_belongs_to_the_person_behind_sudo(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, PERSON, PERSON + 1)
    replace_file(home / "file", "x")
    append_file(home / "summary", "x")
    make_recording(home / "a" / "b" / "r", 3)
    make_recording(home / "a" / "b" / "r", 3, force=True)
    for path in home.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (PERSON, PERSON + 1), path


@root
@pytest.mark.usefixtures("_behind_sudo")
def test_only_what_was_made_and_only_where_the_directory_is_theirs(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for directory in (home, elsewhere):
        directory.mkdir()
    os.chown(home, PERSON, PERSON + 1)
    (home / "roots").mkdir()
    (home / "log").write_text("x")
    append_file(home / "log", "y")
    make_recording(home / "roots" / "r", 3)
    make_recording(elsewhere / "r", 3)
    for path in (home / "roots", home / "log", elsewhere):
        assert path.stat().st_uid == 0, path
    for directory in (home / "roots" / "r", elsewhere / "r"):
        for path in (directory, *directory.iterdir()):
            assert path.stat().st_uid == 0, path


@root
def test_without_sudo_all_is_ours(tmp_path: Path) -> None:
    os.chown(tmp_path, PERSON, PERSON)
    make_recording(tmp_path / "r", 3)
    assert {path.stat().st_uid for path in (tmp_path / "r").rglob("*")} == {0}


@pytest.mark.parametrize(("umask", "file", "directory"), [(0, 0o644, 0o755), (0o77, 0o600, 0o700)])
def test_nobody_else_may_write_whatever_the_umask(
    tmp_path: Path, umask: int, file: int, directory: int
) -> None:
    old = os.umask(umask)
    try:
        make_recording(tmp_path / "a" / "r", 3)
        replace_file(tmp_path / "f", "x")
        append_file(tmp_path / "s", "x")
        replace_file(tmp_path / "metrics", "x", readable=True)
    finally:
        os.umask(old)
    for path in tmp_path.rglob("*"):
        wanted = directory if path.is_dir() else 0o644 if path.name == "metrics" else file
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_no_command_makes_what_everybody_may_write(tmp_path: Path) -> None:
    done = ipi(
        *("compare", EXAMPLE, EXAMPLE, "--output", tmp_path / "out", "--github-summary"),
        env=ENVIRONMENT | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary")},
        before=lambda: os.umask(0),
    )
    assert done.returncode == ExitCode.OK
    for name in ("out", "summary"):
        assert not (tmp_path / name).stat().st_mode & 0o022


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    for mode in (0o600, 0o640, 0o664):
        (tmp_path / "f").write_text("old")
        (tmp_path / "f").chmod(mode)
        replace_file(tmp_path / "f", "new")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode
    (tmp_path / "f").chmod(0o6777)
    replace_file(tmp_path / "f", "new")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o664


# A full disk.


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with next to no space left."""
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        (place / "old").write_text("old")
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={place / 'filler'}"], check=False, capture_output=True
        )
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@root
def test_a_full_disk_leaves_what_was_there_and_nothing_else(full: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        replace_file(full / "old", "new" * 10_000)
    assert names_in(full) == {"old", "filler"}
    assert (full / "old").read_text() == "old"
    done = ipi("compare", EXAMPLE, EXAMPLE, "--all", "--output", full / "old")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert f"{full / 'old'} cannot be written: No space left on device" in done.stderr
    assert (full / "old").read_text() == "old"
    assert names_in(full) == {"old", "filler"}


@root
def test_a_recording_on_a_full_disk(full: Path) -> None:
    with pytest.raises(HostError, match="No space left on device"):
        make_recording(full / "a" / "r", spans=spans(5000))
    assert names_in(full) == {"old", "filler"}


# What killed runs left.

KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from recordings import *
from ipitrace.recording.writer import RecordingWriter
writer = RecordingWriter(Path({place!r}), force=True).__enter__()
writer.append("spans", spans(30), SPAN_MEANINGS)
print("writing", flush=True)
signal.pause()
"""


def start_writing(place: Path) -> "subprocess.Popen[str]":
    program = KILLED.format(path=sys.path, place=str(place))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    process = start_writing(tmp_path / "r")
    (left,) = names_in(tmp_path)
    make_recording(tmp_path / "other")
    assert names_in(tmp_path) == {left, "other"}, "it was alive"
    end(process)
    with pytest.raises(UsageError, match="unfinished") as raised:
        read_run(tmp_path / left)
    assert "the next run" in raised.value.hint
    make_recording(tmp_path / "another")
    assert names_in(tmp_path) == {"other", "another"}


def test_a_writer_in_another_container_is_known_by_its_lock(tmp_path: Path) -> None:
    process = start_writing(tmp_path / "r")
    try:
        (left,) = names_in(tmp_path)
        strange = tmp_path / ".r.partial-4194999999"  # a process number of elsewhere
        (tmp_path / left).rename(strange)
        make_recording(tmp_path / "other")
        assert names_in(tmp_path) == {strange.name, "other"}
    finally:
        end(process)
    make_recording(tmp_path / "more")
    assert names_in(tmp_path) == {"other", "more"}


def test_what_could_be_wanted_is_never_removed(tmp_path: Path) -> None:
    dead = "4194999999"
    make_recording(tmp_path / f".whole.partial-{dead}")  # whole, but could not be moved
    make_recording(tmp_path / f".lost.old-{dead}")  # nothing came into its place
    make_recording(tmp_path / f".r.old-{dead}")  # superseded
    make_recording(tmp_path / "r")
    strange = tmp_path / f".strange.partial-{dead}"
    strange.mkdir()
    (strange / "thesis.txt").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".link.partial-{dead}").symlink_to("elsewhere")
    (tmp_path / f".file.partial-{dead}").write_text("x")
    before = names_in(tmp_path)
    make_recording(tmp_path / "new")
    assert names_in(tmp_path) == (before | {"new"}) - {f".r.old-{dead}"}
    assert read_run(tmp_path / f".lost.old-{dead}").complete
    assert read_run(tmp_path / f".whole.partial-{dead}").complete


@root
def test_leftovers_of_other_users_stay(shared: Path) -> None:
    left = shared / ".r.partial-4194999999"
    left.mkdir()
    (left / RUN_FILE).write_text("{}")
    for path in (left, left / RUN_FILE):
        os.chown(path, THEIRS, THEIRS)
    make_recording(shared / "r")
    assert names_in(shared) == {left.name, "r"}


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    make_recording(tmp_path / "warm")
    before = opened()
    for i in range(20):
        make_recording(tmp_path / f"{i}" / "a" / "r")
        replace_file(tmp_path / "f", "x")
        with pytest.raises(UsageError):
            RecordingWriter(tmp_path / "f", force=True)
        with RecordingWriter(tmp_path / "dropped" / "r", force=True):
            pass
        with locate(tmp_path / "f"):
            pass
    assert opened() == before
    assert not (tmp_path / "dropped").exists()


def test_the_lock_is_there(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        (left,) = names_in(tmp_path)
        with (tmp_path / left / RUN_FILE).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writer.finish(empty_run())
    assert names_in(tmp_path / "r") == {RUN_FILE, CHECKSUM_FILE}
