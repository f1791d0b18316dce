# SPDX-License-Identifier: Apache-2.0
import json
import resource
from pathlib import Path

import pytest
from checks import assert_sound
from commands import ipi
from unknowns import unknowns_as_numbers

from ipitrace.base.errors import ExitCode


@pytest.mark.live
def test_report_prints_what_run_printed(tmp_path: Path) -> None:
    place = tmp_path / "r"
    ran = ipi("run", "--count", 100, "-v", "-o", place)
    assert ran.returncode in {0, 4}, ran.stderr  # 4: a busy host is told, not hidden
    assert f"Wrote {place / 'run.json'}" in ran.stderr
    assert ran.stdout
    assert ipi("report", "-v", place).stdout == ran.stdout


@pytest.mark.live
@pytest.mark.parametrize("more", [(), ("--inject", "lost-ipi")], ids=["all", "lost IPIs"])
def test_what_a_run_does_not_know_is_null(more: tuple[str, ...], tmp_path: Path) -> None:
    """In all columns of all tables, also where an IPI got lost."""
    place = tmp_path / "r"
    ran = ipi("run", "--scenario", "self", "--count", 60, *more, "-o", place)
    assert ran.returncode in {0, 4}, ran.stderr
    assert {path.suffix for path in place.iterdir()} >= {".parquet"}
    assert unknowns_as_numbers(place) == []


@pytest.mark.live("kvm")
def test_the_json_printed_is_the_json_kept(tmp_path: Path) -> None:
    place = tmp_path / "r"
    ran = ipi("run", "--no-trace", "--count", 50, "--json", "-o", place)
    assert ran.stdout == (place / "run.json").read_text() == ipi("report", "--json", place).stdout
    assert_sound(json.loads(ran.stdout))


@pytest.mark.live("kvm")
def test_what_was_measured_is_printed_when_the_disk_is_full(tmp_path: Path) -> None:
    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = ipi("run", "--no-trace", "--count", 50, "-o", tmp_path / "r", before=fill_disk)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "cycles, untraced" in done.stdout
    assert "cannot be written" in done.stderr
    assert "Wrote" not in done.stderr
    assert list(tmp_path.iterdir()) == []
