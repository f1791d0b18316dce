# SPDX-License-Identifier: Apache-2.0
"""Running other programs."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.common.steps import LabError

_TAIL_LINES = 15


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command that dies with this process; answer what it wrote to stdout.

    Raises:
        LabError: it failed; with the end of what it wrote.
    """
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL_LINES:])
        raise LabError(f"{command[0]} failed (status {done.returncode}):\n{tail}")
    return done.stdout
