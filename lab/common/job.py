# SPDX-License-Identifier: Apache-2.0
"""The job of an emulated host: the wheel under test and the command to run."""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.common.commands import run
from lab.common.image import job_disk
from lab.common.rootfs import pip_install
from lab.common.steps import step

CHECKOUT = Path(__file__).parents[2]
RESULT = "/result"
"""The job disk's folder of results; /job/result while the host runs."""

_RUN = """#!/bin/sh
# What an emulated host does; its exit status comes back as result/status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
export PYTHONPATH=/job/site PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
cd /tmp
{command} >/job/result/stdout.txt 2>/job/result/stderr.txt
status=$?
tail -n 5 /job/result/stderr.txt
exit $status
"""


def build_wheel(directory: Path) -> Path:
    """Build the checkout's wheel into `directory`.

    Raises:
        LabError: the build fails.
    """
    with step("wheel"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--wheel"]
        run([*command, "--outdir", directory, CHECKOUT])
        (wheel,) = directory.glob("*.whl")
    return wheel


def ipitrace_command(arguments: Sequence[str]) -> str:
    """The shell command that runs ipitrace inside."""
    return shlex.join(["python3", "-m", "ipitrace", *arguments])


def pack_job(
    packages: Sequence[str | Path], command: str, files: Mapping[str, Path], disk: Path
) -> None:
    """Make the job disk: Python packages for the host's Python, and `command` to run.

    Args:
        packages: the wheel under test, and names of others.
        command: a shell command; /job/result is its place for what must come back.
        files: what else lies in /job, by relative path; the host's Python imports from `site`.
        disk: the file to make.

    Raises:
        LabError: a package cannot be installed.
    """
    with step("job disk"), tempfile.TemporaryDirectory(dir=disk.parent) as name:
        tree = Path(name)
        tree.chmod(0o755)
        (tree / "result").mkdir()
        (tree / "run").write_text(_RUN.format(command=command))
        pip_install(tree / "site", packages)
        for place, file in files.items():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tree / place)
        job_disk(tree, disk)
