# SPDX-License-Identifier: Apache-2.0
"""A disk without space: what is written is whole or not there, and the reason is told."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from guests import micro_guest
from place import Place, assert_told, whole

import ipitrace
from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live

A_RUN = ("--scenario", "unicast-running", "--count", 400, "--repeat", 1)
EXAMPLE = Path(ipitrace.__file__).parents[1] / "tests/data/recordings/micro-pvm"


@pytest.fixture
def small(tmp_path: Path, place: Place) -> Iterator[Path]:  # noqa: ARG001 - is left before that
    """A file system of 64 KiB, empty."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Take all the space there is; removing what this answers gives it back."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return ballast


def test_run(place: Place, small: Path) -> None:
    with place.starts("run", *A_RUN, "-o", small / "rec") as program:
        program.finish()
    assert_told(program, ExitCode.ENVIRONMENT)
    assert "No space left on device" in program.complained
    assert list(small.iterdir()) == []


def test_run_leaves_an_older_recording_as_it_was(place: Place, small: Path) -> None:
    old = ("run", "--no-trace", "--scenario", "self", "--count", 12, "--repeat", 1)
    with place.starts(*old, "-o", small / "rec") as program:
        assert program.finish() == 0, program.complained
    began = whole(small / "rec").started_at
    fill(small)
    with place.starts("run", *A_RUN, "--force", "-o", small / "rec") as program:
        program.finish()
    assert_told(program, ExitCode.ENVIRONMENT)
    assert whole(small / "rec").started_at == began
    assert {path.name for path in small.iterdir()} == {"rec", "ballast"}


def test_ab_says_why_and_sets_a_up_again(place: Place, small: Path) -> None:
    words = ("ab", "--a", "echo a >>order", "--b", "echo b >>order", "-o", small / "both")
    with place.starts(*words, "--rounds", 2, "--", *A_RUN) as program:
        program.finish()
    assert_told(program, ExitCode.ENVIRONMENT)
    assert "No space left on device" in program.complained
    assert (place.cwd / "order").read_text().splitlines()[-1] == "a"


def test_watch_goes_on_says_so_once_and_recovers(place: Place, small: Path) -> None:
    ballast = fill(small)
    totals = small / "totals"
    with micro_guest("unicast-blocked"):
        words = ("watch", "--interval", 0.2, "--json", "--openmetrics", totals)
        with place.starts(*words) as program:
            lines = iter(program.process.stdout or ())
            for _ in range(5):
                assert json.loads(next(lines))
            ballast.unlink()
            deadline_s = time.monotonic() + 60
            while not totals.exists() or not totals.read_text().endswith("# EOF\n"):
                assert time.monotonic() < deadline_s, "it never recovered"
                time.sleep(0.05)
            program.process.terminate()
            assert program.finish() == ExitCode.OK, program.complained
    assert program.complained.count("No space left on device") == 1
    assert [path.name for path in small.iterdir()] == ["totals"]


@pytest.mark.parametrize("form", ["table", "json", "junit"])
def test_compare_keeps_what_was_there(place: Place, small: Path, form: str) -> None:
    output = small / "verdict"
    output.write_text("of yesterday\n")  # takes a page, which what comes does not fit in
    fill(small)
    words = ("compare", EXAMPLE, EXAMPLE, "--format", form)
    with place.starts(*words, "--output", output) as program:
        program.finish()
    assert_told(program, ExitCode.ENVIRONMENT)
    assert "No space left on device" in program.complained
    assert output.read_text() == "of yesterday\n"
    assert {path.name for path in small.iterdir()} == {"verdict", "ballast"}
