# SPDX-License-Identifier: Apache-2.0
"""Running other programs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ipitrace.host.programs import clean_environment
from lab.common.steps import LabError

_TAIL_LINES = 15


def run(command: Sequence[str | Path], *, name: str | None = None) -> str:
    """Run a command that dies with this process; answer what it wrote to stdout.

    Programs are found through no folder that others may write.

    Args:
        command: the program and its arguments.
        name: what a failure is called; the program unless given.

    Raises:
        LabError: it failed; with the end of what it wrote.
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
