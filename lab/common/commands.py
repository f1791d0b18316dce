# SPDX-License-Identifier: Apache-2.0
"""Runs other programs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ipitrace.host.programs import clean_environment
from lab.common.steps import LabError

_TAIL_LINES = 15


def run(command: Sequence[str | Path], *, name: str | None = None) -> str:
    """Run a command that is killed with this process; return its stdout.

    Programs are not searched in folders that other users can write.

    Args:
        command: the program and its arguments.
        name: the name in an error; default: the program.

    Raises:
        LabError: the command failed; the message has the end of its output.
    """
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        env=clean_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL_LINES:])
        raise LabError(f"{name or command[0]} failed (status {done.returncode}):\n{tail}")
    return done.stdout
