# SPDX-License-Identifier: Apache-2.0
"""docs/paths.md has every path, with its meaning, and where it was seen running."""

import re
from pathlib import Path

import pytest

from ipitrace.recording.reader import read_run
from ipitrace.words.paths import PATHS, IpiPath

ROOT = Path(__file__).parents[3]
RECORDINGS = ROOT / "tests" / "data" / "recordings"
PLACES = {"real", "Intel lab", "AMD lab", "a KVM without kvm_exit"}
# Which hosts made the recordings that the repository has: tests/data/recordings/README.md.
RECORDED_AT = {
    "amd-tcg": "AMD lab",
    "intel-bochs": "Intel lab",
    "intel-bochs-2": "Intel lab",
    "micro-pvm": "a KVM without kvm_exit",
    "micro-pvm-2": "a KVM without kvm_exit",
    "passthrough-off": "Intel lab",
    "passthrough-on": "Intel lab",
}


def rows() -> dict[str, list[str]]:
    """Each row of the table by its path: the other cells."""
    text = (ROOT / "docs" / "paths.md").read_text()
    found = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(dict(found)) == len(found), "a path is there twice"
    return {path: cells.split(" | ") for path, cells in found}


def seen(path: str) -> set[str]:
    return set(rows()[path][-1].split(", "))


def test_the_table_of_the_code_has_every_path_once() -> None:
    assert [spec.path for spec in PATHS] == list(IpiPath)
    assert len({spec.meaning for spec in PATHS}) == len(PATHS)


def test_the_document_has_all_paths_and_no_others_with_their_meaning() -> None:
    assert {path: cells[0] for path, cells in rows().items()} == {
        spec.path.text: spec.meaning for spec in PATHS
    }
    assert all(len(cells) == 5 and all(cells) for cells in rows().values())


@pytest.mark.parametrize("path", [spec.path.text for spec in PATHS])
def test_where_it_was_seen_is_a_place_or_never(path: str) -> None:
    assert seen(path) <= PLACES or seen(path) == {"-" if path == "unknown" else "never"}


def test_the_recordings_agree() -> None:
    assert {p.name for p in RECORDINGS.iterdir() if p.is_dir()} == RECORDED_AT.keys()
    recorded: dict[str, set[str]] = {}
    for name, place in RECORDED_AT.items():
        for scenario in read_run(RECORDINGS / name).scenarios:
            for path in scenario.paths or {}:
                recorded.setdefault(path, set()).add(place)
    assert len(recorded) >= 4
    for path, places in recorded.items():
        assert places <= seen(path), path
