# SPDX-License-Identifier: Apache-2.0
"""docs/ci/ipitrace-gate.sh: which ipitrace it calls, and that it says so when there is none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ipitrace.base.errors import ExitCode

GATE = Path(__file__).parents[3] / "docs/ci/ipitrace-gate.sh"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A copy in a checkout without anything else."""
    gate = tmp_path / "checkout/docs/ci/ipitrace-gate.sh"
    gate.parent.mkdir(parents=True)
    shutil.copy(GATE, gate)
    return gate


def program(path: Path) -> Path:
    """Says who it is, and does nothing."""
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\necho "called $0 $1"\n')
    path.chmod(0o755)
    return path


def judge(
    gate: Path, path: str = "", *, script: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    kept = {key: os.environ[key] for key in os.environ if key not in {"IPITRACE", "OUT"}}
    kept["PATH"] = os.pathsep.join([*filter(None, [path]), "/usr/bin", "/bin"])
    return subprocess.run(
        ["sh", script or gate],
        cwd=gate.parents[3],
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_ipitrace_it_stops_at_once(gate: Path, tmp_path: Path) -> None:
    for given in ({}, {"IPITRACE": "no-such-program --traceback"}):
        done = judge(gate, **given)
        assert done.returncode == ExitCode.ENVIRONMENT
        assert "There is no program" in done.stderr
        assert "sudo make install" in done.stderr
        assert not (tmp_path / "ipitrace-gate").exists()


def test_the_checkouts_own_is_found(gate: Path, tmp_path: Path) -> None:
    own = program(gate.parents[2] / ".venv/bin/ipitrace")
    called = judge(gate).stdout
    assert Path(called.split()[1]).resolve() == own
    link = tmp_path / "gate"
    link.symlink_to(gate)
    assert Path(judge(gate, script=link).stdout.split()[1]).resolve() == own


def test_the_installed_one_comes_first(gate: Path, tmp_path: Path) -> None:
    program(gate.parents[2] / ".venv/bin/ipitrace")
    installed = program(tmp_path / "bin/ipitrace")
    done = judge(gate, str(tmp_path / "bin"))
    assert done.stdout == f"called {installed} ab\n"
    named = program(tmp_path / "other/mine")
    done = judge(gate, str(tmp_path / "bin"), IPITRACE=str(named))
    assert done.stdout == f"called {named} ab\n"


def test_a_checkout_with_a_space_in_its_path(gate: Path, tmp_path: Path) -> None:
    """Else root runs what the path's first word names."""
    spaced = tmp_path / "my checkout"
    gate.parents[2].rename(spaced)
    own = program(spaced / ".venv/bin/ipitrace")
    (tmp_path / "my").write_text("#!/bin/sh\necho another\n")
    (tmp_path / "my").chmod(0o755)
    called = judge(spaced / "docs/ci/ipitrace-gate.sh").stdout
    assert Path(called.removeprefix("called ").removesuffix(" ab\n")).resolve() == own


def test_a_relative_entry_of_the_path_is_passed_over(gate: Path, tmp_path: Path) -> None:
    program(tmp_path / "theirs/ipitrace")
    assert judge(gate, "theirs").returncode == ExitCode.ENVIRONMENT
    own = program(gate.parents[2] / ".venv/bin/ipitrace")
    assert Path(judge(gate, "theirs").stdout.split()[1]).resolve() == own


def test_no_word_is_taken_for_the_name_of_a_file(gate: Path, tmp_path: Path) -> None:
    shown = tmp_path / "bin/ipitrace"
    program(shown).write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "a1").touch()
    assert "--allow a? " in judge(gate, str(shown.parent), COMPARE="--allow a?").stdout
