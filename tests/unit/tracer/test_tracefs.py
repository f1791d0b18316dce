# SPDX-License-Identifier: Apache-2.0
"""Finding tracefs; mounting it is tried in tests/live."""

from pathlib import Path

from ipitrace.tracer.tracefs import find_tracefs


def test_the_first_mounted_one(tmp_path: Path) -> None:
    unmounted, mounted = tmp_path / "a", tmp_path / "b"
    unmounted.mkdir()
    (mounted / "events").mkdir(parents=True)
    assert find_tracefs((unmounted, mounted)) == mounted
    assert find_tracefs((unmounted, tmp_path / "absent")) is None
