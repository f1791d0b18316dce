# SPDX-License-Identifier: Apache-2.0
"""What `ipitrace run` must have printed and left when it ended well, or failed as documented."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from checks import assert_sound

from ipitrace.base.errors import ExitCode

FEW = ("--scenario", "self", "--count", "40")


def privately(setup: str) -> tuple[str, ...]:
    """A command that runs another in a mount namespace of its own, changed by `setup`."""
    return ("unshare", "--mount", "sh", "-ec", f'{setup}\nexec "$@"', "sh")


WROTE = re.compile(r"Wrote \S+/run\.json\n")
FILES = {"run.json", "SHA256SUMS", "host_events.parquet", "guest_ipis.parquet", "spans.parquet"}


def assert_fine(done: subprocess.CompletedProcess[str], *, quiet: bool = False) -> None:
    """It succeeded and had nothing to say but where the recording is."""
    assert done.returncode == ExitCode.OK, done.stderr
    assert re.fullmatch("" if quiet else WROTE, done.stderr), done.stderr


def assert_told(
    done: subprocess.CompletedProcess[str], code: ExitCode, *words: str, recorded: bool = False
) -> None:
    """It failed as agreed: this code, one sentence, one hint, these words in them."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    said = WROTE.sub("", done.stderr, count=1) if recorded else done.stderr
    lines = said.splitlines()
    assert len(lines) == 2, done.stderr
    # A sentence, or one that begins with a name as it was typed.
    assert re.match(r"ipitrace: ([A-Z/'-]|here ).*[.:?!]$", lines[0]), lines[0]
    assert re.match(r"          \S.*[.:?!]$", lines[1]), lines[1]
    for word in words:
        assert word in said, said
    if not recorded:
        assert done.stdout in {"", None}


def run_json(directory: Path) -> dict[str, Any]:
    """The run of a whole recording, which holds nothing else."""
    run = json.loads((directory / "run.json").read_text())
    assert_sound(run)
    names = {path.name for path in directory.iterdir()}
    assert {"run.json", "SHA256SUMS"} <= names <= FILES
    assert {f"{table}.parquet" for table in run["tables"]} == names - {"run.json", "SHA256SUMS"}
    return dict(run)
