# SPDX-License-Identifier: Apache-2.0
"""What an emulated host brought back."""

from pathlib import Path

from lab.common.image import read_from_disk
from lab.common.job import RESULT
from lab.common.steps import LabError, step


def collect(disk: Path, console: Path, output: Path) -> None:
    """Copy the job's result from its disk to `output`; see that the job went well.

    Args:
        disk: the job disk, after power-off.
        console: the log of the host's console, for the reason when nothing came back.
        output: where `status`, `stdout.txt`, `stderr.txt` and what the job left go.

    Raises:
        LabError: the job did not end, or ended with a status that is not 0.
    """
    with step("collect"):
        read_from_disk(disk, RESULT, output)
        status = output / "status"
        if not status.exists():
            said = [line for line in _lines(console) if line.startswith("lab-init:")]
            last = said[-1] if said else "its first process never spoke"
            raise LabError(f"the host did not finish its job ({last}); console: {console}")
        if status.read_text().strip() != "0":
            tail = "\n".join(_lines(output / "stderr.txt")[-15:])
            raise LabError(f"the job failed (status {status.read_text().strip()}):\n{tail}")


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.exists() else []
