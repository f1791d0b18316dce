# SPDX-License-Identifier: Apache-2.0
"""Requests to end, and disks that are full, at many moments of real measurements."""

import contextlib
import json
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ENVIRONMENT, IPITRACE, ipi
from guests import micro_guest, qemu_guest, until
from hostile import SAMPLES
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ipitrace.base.errors import ExitCode
from ipitrace.recording.reader import read_run

pytestmark = pytest.mark.live


def start(*words: object, cwd: Path, **options: object) -> "subprocess.Popen[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(
        [*IPITRACE, *map(str, words)],
        stdin=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
        **streams,  # type: ignore[call-overload]
    )


def is_handled(process: "subprocess.Popen[str]") -> bool:
    """Whether it is past Python's own start."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def check_end(process: "subprocess.Popen[str]", folder: Path) -> None:
    """It ended as agreed: nothing is left, or a whole recording that says what it is."""
    _, said = process.communicate(timeout=120)
    assert process.returncode in {ExitCode.OK, ExitCode.INTERRUPTED, ExitCode.UNTRUSTWORTHY}, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    left = {path.name for path in folder.iterdir()}
    assert left <= {"r"}, (left, said)
    if left:
        run = read_run(folder / "r")
        if process.returncode == ExitCode.INTERRUPTED:
            assert not run.complete
            assert [row for row in run.scenarios if row.status == "measured"], "it holds nothing"
            assert "Completed repetitions are kept." in said
    else:
        assert process.returncode == ExitCode.INTERRUPTED
        assert re.search("no recording was written|not kept|Interrupted.\n$", said), said


@pytest.mark.parametrize("how", [(), ("--no-trace",)], ids=["traced", "untraced"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_ends_well_at_any_moment(
    how: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    words = ("run", *how, "--scenario", "self", "--count", "600", "-q", "-o", "r")
    for i, delay_s in enumerate((0.0, 0.3, 0.8, 1.5, 2.5, 4.0)):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        process = start(*words, cwd=folder)
        until(lambda process=process: is_handled(process))  # type: ignore[misc]
        time.sleep(delay_s)
        process.send_signal(number)
        check_end(process, folder)


NOTHING_WRITTEN = "Interrupted.\n          Nothing was completed, and no recording was written.\n"


def storming(process: "subprocess.Popen[str]") -> bool:
    """Whether it has a vCPU, so that a guest is there."""
    fds = Path(f"/proc/{process.pid}/fd")
    with contextlib.suppress(OSError):
        return any("kvm-vcpu" in str(fd.readlink()) for fd in fds.iterdir())
    return False


@pytest.mark.parametrize("how", [(), ("--no-trace",)], ids=["traced", "untraced"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_with_nothing_finished_writes_nothing(
    how: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    """Not even in place of the recording that was there."""
    few = ("--no-trace", "--scenario", "self", "--count", "300", "-q", "-o", "old")
    assert ipi("run", *few, cwd=tmp_path).returncode == ExitCode.OK
    old = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    # A single repetition of some ten seconds, of which the storm has begun.
    long = ("--scenario", "unicast-running", "--count", "200000", "--repeat", "1", "-q")
    for place, force in (("old", ("--force",)), ("new/below", ())):
        process = start(
            *("run", *how, *long, "--pace", "200000", *force, "-o", place), cwd=tmp_path
        )
        until(lambda process=process: storming(process), 60)  # type: ignore[misc]
        time.sleep(1)
        process.send_signal(number)
        out, said = process.communicate(timeout=60)
        assert (process.returncode, out) == (ExitCode.INTERRUPTED, "")
        assert said == f"ipitrace: {NOTHING_WRITTEN}"
        assert {path.name for path in tmp_path.iterdir()} == {"old"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == old


def test_an_interrupted_ab_with_nothing_finished_says_so(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()  # it may be there, if it is empty
    process = start(
        *("ab", "--a", "true", "--b", "true", "-o", "ab", "--", "--no-trace"),
        *("--scenario", "unicast-running", "--count", "200000", "--pace", "200000"),
        cwd=tmp_path,
    )
    until(lambda: list(tmp_path.glob("ab/a/.001.partial-*")), 60)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    where, said = told.split("\n", 1)
    assert where.endswith("the recordings go to ab")
    assert (process.returncode, said) == (ExitCode.INTERRUPTED, f"ipitrace: {NOTHING_WRITTEN}")
    assert not list((tmp_path / "ab").iterdir())


@pytest.mark.parametrize("gap_s", [0.0, 0.01, 0.1, 0.5])
def test_a_second_request_leaves_nothing_half_done(gap_s: float, tmp_path: Path) -> None:
    for i, delay_s in enumerate((0.5, 1.5, 3.0)):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        process = start("run", "--scenario", "self", "--count", "4000", "-q", "-o", "r", cwd=folder)
        until(lambda process=process: is_handled(process))  # type: ignore[misc]
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        time.sleep(gap_s)
        process.send_signal(signal.SIGTERM)
        check_end(process, folder)


def test_nohup_measures_on(tmp_path: Path) -> None:
    process = start(
        *("run", "--no-trace", "--scenario", "self", "--count", "300", "-q", "-o", "r"),
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    _, said = process.communicate()
    assert process.returncode == ExitCode.OK, said
    assert read_run(tmp_path / "r").complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_watch_ends_with_a_summary(number: signal.Signals, tmp_path: Path) -> None:
    with micro_guest() as guest:
        process = start("watch", "--vm", f"pid:{guest.pid}", "--interval", 0.2, cwd=tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (ExitCode.OK, "")
    assert "whole run" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ab_ends_with_a_set_up(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(
        *("ab", "--a", f"echo a >> {log}", "--b", f"echo b >> {log}", "-o", "ab"),
        *("--", "--no-trace", "--scenario", "self", "--count", "100000"),
        cwd=tmp_path,
    )
    until(lambda: log.exists() and "b" in log.read_text(), 120)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert "Traceback" not in said
    assert "Completed measurements are kept in ab." in said
    assert log.read_text().split()[-1] == "a"


def test_too_few_descriptors_in_the_middle(tmp_path: Path) -> None:
    """Enough to begin with, and not for all of it."""
    for limit in (64, 70, 80):
        done = ipi(
            *("run", "--scenario", "self", "--count", "300", "-q", "-o", tmp_path / f"{limit}"),
            before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
        assert done.returncode in {ExitCode.OK, ExitCode.ENVIRONMENT}, done.stderr
        assert "Traceback" not in done.stderr


# Full disks.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for little."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={filler}", "bs=1k"], check=False, capture_output=True
    )
    return filler


def test_watch_goes_on_while_the_disk_is_full(small: Path) -> None:
    path = small / "ipitrace.prom"

    def failures() -> float:
        families = text_string_to_metric_families(path.read_text())
        (family,) = [f for f in families if f.name == "ipitrace_watch_write_failures"]
        return float(family.samples[0].value)

    with micro_guest() as guest:
        process = start(
            *("watch", "--vm", f"pid:{guest.pid}", "--interval", 0.2, "--json"),
            *("--openmetrics", path),
            cwd=small.parent,
        )
        assert process.stdout is not None
        until(path.exists)
        assert failures() == 0
        filler = fill(small)
        old = path.read_text()
        for _ in range(6):
            assert json.loads(process.stdout.readline())["stopped"] is None
        time.sleep(1)
        assert path.read_text() == old
        assert {one.name for one in small.iterdir()} == {path.name, filler.name}
        filler.unlink()
        until(lambda: failures() > 0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK
    first, second = said.splitlines()
    assert first == (
        f"ipitrace: {path} cannot be written: No space left on device; the next interval "
        "tries again."
    )
    assert re.fullmatch(rf"ipitrace: {path} is written again; \d+ writes failed before\.", second)
    assert {one.name for one in small.iterdir()} == {path.name}


def test_watch_begins_on_a_full_disk(small: Path) -> None:
    filler = fill(small)
    with micro_guest() as guest:
        done = ipi(
            *("watch", "--vm", f"pid:{guest.pid}", "--interval", 0.2, "--duration", 1),
            *("--openmetrics", small / "x.prom"),
        )
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert "whole run" in done.stdout
    assert {one.name for one in small.iterdir()} == {filler.name}


def test_run_on_a_full_disk(small: Path) -> None:
    filler = fill(small)
    done = ipi("run", "--no-trace", "--scenario", "self", "--count", "300", "-o", small / "a" / "r")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "No space left on device" in done.stderr
    assert {one.name for one in small.iterdir()} == {filler.name}


# A VM whose name does more than to be shown.


def test_the_name_of_a_vm_does_nothing_to_a_terminal() -> None:
    """QEMU takes any name. list and doctor print it; watch draws it with rich's own sequences."""
    name = "".join(SAMPLES[:9]).replace("\x00", "").encode("utf-8", "replace").decode()
    with qemu_guest("-name", f"guest={name.replace(',', ',,')},debug-threads=on") as guest:
        vm = f"pid:{guest.pid}"
        for words in ("list", f"doctor --vm {vm}", f"watch --vm {vm} --duration 1"):
            done = subprocess.run(
                ["script", "-qec", " ".join([*IPITRACE, *words.split()]), "/dev/null"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=ENVIRONMENT | {"TERM": "xterm-256color"},
                check=False,
                timeout=120,
            )
            assert rb"\x1b[31mred" in done.stdout or words.startswith("doctor")
            for sequence in (b"\x1b]", b"\x1b[31m", b"\x9d", b"\x07", "\u202e".encode()):
                assert sequence not in done.stdout, (words, sequence)
            assert b"\nFORGED" not in done.stdout.replace(b"\r", b"")
