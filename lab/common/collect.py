# SPDX-License-Identifier: Apache-2.0
"""Collects the results of an emulated host."""

from pathlib import Path

from lab.common.image import read_from_disk
from lab.common.job import RESULT
from lab.common.steps import LabError, step


def collect(disk: Path, console: Path, output: Path) -> None:
    """Copy the job's result from its disk to `output`; check that the job succeeded.

    Args:
        disk: the job disk, after power-off.
        console: the log of the host's console, for the reason if there is no result.
        output: the folder for `status`, `stdout.txt`, `stderr.txt` and the job's other files.

    Raises:
        LabError: the job did not end, or ended with a status that is not 0.
    """
    with step("collect"):
        read_from_disk(disk, RESULT, output)
        status = output / "status"
        if not status.exists():
            lines = [line for line in _lines(console) if line.startswith("lab-init:")]
            last = lines[-1] if lines else "its first process printed nothing"
            raise LabError(
                f"the host did not complete its job ({last}); see the console: {console}"
            )
        if status.read_text().strip() != "0":
            tail = "\n".join(_lines(output / "stderr.txt")[-15:])
            raise LabError(f"the job failed (status {status.read_text().strip()}):\n{tail}")


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.exists() else []
