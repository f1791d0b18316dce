# SPDX-License-Identifier: Apache-2.0
"""script/demo ends with how to call ipitrace; its set-up and ipitrace itself are stood in for."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "script"


@pytest.mark.parametrize(("status", "told"), [(0, True), (4, True), (2, False), (130, False)])
def test_it_ends_with_how_to_call_it(tmp_path: Path, status: int, told: bool) -> None:  # noqa: FBT001
    shutil.copytree(SCRIPTS, tmp_path / "script")
    for name, text in {"script/setup": "", ".venv/bin/ipitrace": f"echo $*; exit {status}"}.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    words = ["sh", tmp_path / "script/demo", "--count", "9"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status
    first, *rest = done.stdout.splitlines()
    assert first == "run -o demo-recording --force --count 9"
    assert any("sudo make install" in line for line in rest) == told
    assert any(".venv/bin/ipitrace run" in line for line in rest) == told
