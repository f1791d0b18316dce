# SPDX-License-Identifier: Apache-2.0
"""The fuzzers' runner sees each way in which a parser can break, whatever makes the inputs."""

import importlib.util
from pathlib import Path

import pytest
from fuzz.supervisor import Limits, run_target

LIMITS = Limits(seconds=30, inputs=500, hang_s=5, memory_mib=256)
ENGINES = [
    "hypothesis",
    pytest.param(
        "atheris",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("atheris") is None, reason="atheris has no wheel here"
        ),
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("target", "found", "details"),
    [
        ("_raises", "it ended with 77", "ValueError"),
        ("_hangs", "hang", "_hangs.py"),
        ("_dies", "it ended with -9", ""),
        ("_grows", "", "MemoryError"),
    ],
)
def test_what_breaks_is_told_and_the_input_kept(
    tmp_path: Path, engine: str, target: str, found: str, details: str
) -> None:
    outcome = run_target(target, engine, LIMITS, 1, tmp_path)
    assert outcome.found is not None
    assert outcome.found.startswith(found)
    assert details in outcome.details or "memory" in outcome.found
    assert outcome.kept is not None
    assert outcome.kept.is_file()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_does_not_break_gets_all_inputs(tmp_path: Path, engine: str) -> None:
    outcome = run_target("_passes", engine, LIMITS, 1, tmp_path)
    assert (outcome.found, outcome.inputs) == (None, LIMITS.inputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ENGINES)
def test_what_its_starter_takes_is_not_its_own(tmp_path: Path, engine: str) -> None:
    taken = b"x" * ((LIMITS.memory_mib + 64) << 20)
    outcome = run_target("_passes", engine, LIMITS, 1, tmp_path)
    assert (outcome.found, len(taken) >> 20 > outcome.peak_mib) == (None, True)
