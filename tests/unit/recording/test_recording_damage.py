# SPDX-License-Identifier: Apache-2.0
"""Damaged, incomplete and foreign recordings end in one sentence."""

# SPDX-License-Identifier: Apache-2.0
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import (
    EVENT_MEANINGS,
    FILES,
    empty_run,
    events,
    make_recording,
    read_table,
)

from ipitrace.base.errors import UsageError
from ipitrace.base.resources import example_dir
from ipitrace.recording.reader import read_rows, read_run, read_run_text
from ipitrace.recording.result import SCHEMA_VERSION
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

ANSWERS: list[Callable[[Path], object]] = [
    read_run,
    lambda directory: read_rows(directory, read_run(directory), "spans"),
    lambda directory: read_rows(directory, read_run(directory), "host_events"),
]


def seal(directory: Path) -> None:
    """Make the checksums right again after a deliberate change."""
    names = sorted(path.name for path in directory.iterdir() if path.name != CHECKSUM_FILE)
    digest = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
    (directory / CHECKSUM_FILE).write_text("".join(f"{digest[n]}  {n}\n" for n in names))


def change_run(directory: Path, **changes: Any) -> None:
    data = json.loads((directory / RUN_FILE).read_text()) | changes
    (directory / RUN_FILE).write_text(json.dumps(data))
    seal(directory)


# Damage.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "r"
    make_recording(directory, 5)
    return directory


def answers(directory: Path) -> list[object]:
    """What each reader answers: the data, or that it refuses, in one sentence and a hint."""
    found: list[object] = []
    sentences = []
    for answer in ANSWERS:
        try:
            found.append(answer(directory))
        except UsageError as error:
            found.append(None)
            sentences.append(error.message)
    assert all(len(text.splitlines()) == 1 and text.endswith(".") for text in sentences)
    return found


@functools.cache
def undamaged(directory: Path) -> list[object]:
    good = answers(directory)
    assert None not in good
    return good


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes]]:
    name = draw(st.sampled_from(FILES))
    at = draw(st.floats(0, 1, exclude_max=True))
    if draw(st.booleans()):
        return name, lambda content: content[: int(at * len(content))]
    mask = draw(st.integers(1, 255))

    def flipped(content: bytes) -> bytes:
        i = int(at * len(content))
        return content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :]

    return name, flipped


@given(damages())
@settings(max_examples=25, deadline=None)
def test_damage_is_told_and_never_read_as_data(
    whole: Path, damage: tuple[str, Callable[[bytes], bytes]]
) -> None:
    name, change = damage
    good = undamaged(whole)
    copy = whole.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    bad = answers(copy)
    assert all(b is None or b == g for b, g in zip(bad, good, strict=True))
    assert None in bad


@given(damages())
@settings(max_examples=25, deadline=None)
def test_damage_under_a_right_checksum_ends_in_an_error_or_in_data(
    whole: Path, damage: tuple[str, Callable[[bytes], bytes]]
) -> None:
    name, change = damage
    copy = whole.with_name("sealed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    if name != CHECKSUM_FILE:
        seal(copy)
    answers(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    assert None in answers(tmp_path / "r")


def test_tables_of_two_recordings_do_not_mix(whole: Path, tmp_path: Path) -> None:
    make_recording(tmp_path / "r", 7)
    shutil.copy(whole / "spans.parquet", tmp_path / "r")
    with pytest.raises(UsageError, match="damaged, or was changed"):
        read_rows(tmp_path / "r", read_run(tmp_path / "r"), "spans")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1, "surprise": 1}, "made by a newer ipitrace"),
        ({"schema_version": "1"}, "has no valid schema_version"),
        ({"surprise": 1}, "the key surprise is not known"),
        ({"command": "run"}, "command is str, not an array"),
    ],
)
def test_a_run_json_we_cannot_read_is_told(
    whole: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(whole, tmp_path / "r")
    change_run(tmp_path / "r", **changes)
    with pytest.raises(UsageError, match=message):
        read_run(tmp_path / "r")


def test_a_missing_key_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "r")
    data = json.loads((tmp_path / "r" / RUN_FILE).read_text())
    del data["clock"]
    (tmp_path / "r" / RUN_FILE).write_text(json.dumps(data))
    seal(tmp_path / "r")
    with pytest.raises(UsageError, match="the key clock is missing"):
        read_run(tmp_path / "r")


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"a": 1}', "\udcff"])
def test_some_other_run_json_is_not_a_recording(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(content.encode(errors="surrogateescape"))
    seal(tmp_path)
    with pytest.raises(UsageError, match="is not a recording"):
        read_run(tmp_path)


def test_what_is_not_there_is_told(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no recording"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a recording"):
        read_run(tmp_path)
    run = read_run(whole)
    with pytest.raises(UsageError, match="has no table 'guest_ipis'") as raised:
        read_rows(whole, run, "guest_ipis")
    assert "--no-trace" in raised.value.hint
    with pytest.raises(UsageError, match="has no column 'colour'"):
        read_rows(whole, run, "spans", ["colour"])
    with pytest.raises(UsageError, match="has no column 'colour'"):
        read_rows(whole, run, "spans", equal={"colour": "blue"})


def test_an_interrupted_run_is_kept_and_says_so(tmp_path: Path) -> None:
    run = replace(empty_run(), complete=False, failure="Interrupted.")
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.append("host_events", events(2), EVENT_MEANINGS)
        writer.finish(run)
    kept = read_run(tmp_path / "r")
    assert (kept.complete, kept.failure) == (False, "Interrupted.")
    assert read_table(tmp_path / "r", "host_events").num_rows == 6


def test_the_example_is_whole_and_small() -> None:
    run = read_run(example_dir())
    assert run.complete
    assert run.to_json() == read_run_text(example_dir())
    assert sum(path.stat().st_size for path in example_dir().iterdir()) < 1 << 20
