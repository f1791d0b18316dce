# SPDX-License-Identifier: Apache-2.0
"""All steps from the checkout to a recording made on an emulated host."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.common.cache import cache_dir
from lab.common.collect import collect
from lab.common.image import read_from_disk, root_image
from lab.common.initramfs import build_initramfs
from lab.common.job import RESULT, build_wheel, pack_job
from lab.common.kernel import Kernel, fetch
from lab.common.steps import LabError, say, step

BASE_COMMAND_LINE = (
    "console=ttyS0,115200 panic=-1 loglevel=4 nokaslr mitigations=off "
    # Both emulators have one TSC for all CPUs, but show no flag that says so. Kernels then
    # may call it unstable, and KVM gives each vCPU another TSC offset at every entry.
    "tsc=reliable"
)


@dataclass(frozen=True)
class Parts:
    """The parts that an emulator boots.

    Attributes:
        kernel: the kernel and its modules.
        initramfs: ends in the job and powers off.
        command_line: of the kernel.
        root_disk: labelled lab-root; must not be written.
        job_disk: labelled lab-job; written.
        console: the file that the serial port's output goes to.
        cpus: of the emulated host.
        more_disk: must not be written.
    """

    kernel: Kernel
    initramfs: Path
    command_line: str
    root_disk: Path
    job_disk: Path
    console: Path
    cpus: int
    more_disk: Path | None = None


@dataclass(frozen=True)
class Request:
    """A job for an emulated host.

    Attributes:
        suite: of Debian, whose kernel is booted unless `kernel` is given.
        command: the shell command to run; job.ipitrace_command() makes one of arguments.
        kernel_parameters: added to the kernel's command line.
        output: where what comes back goes; replaced when it is there.
        wheel: the wheel under test; None builds it from the checkout.
        kernel: a kernel built elsewhere.
        cpus: of the emulated host.
        root_disk: labelled lab-root, in place of the usual one.
        more_disk: a third disk, for the job.
        files: what else the job finds in /job, by relative path.
        packages: from the package index, beside the wheel.
    """

    suite: str
    command: str
    kernel_parameters: Sequence[str]
    output: Path
    wheel: Path | None = None
    kernel: Kernel | None = None
    cpus: int = 2
    root_disk: Path | None = None
    more_disk: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    packages: Sequence[str] = ()


def run_on(boot: Callable[[Parts], None], request: Request) -> None:
    """Build missing products, boot the host, collect the result.

    `request.output` has `console.log` and what the job left, also after a failure.

    Args:
        boot: starts the emulator and returns after power-off.
        request: what to run.

    Raises:
        LabError: a step failed; the message names it.
    """
    chosen = request.kernel or fetch(request.suite)
    initramfs = build_initramfs(chosen)
    root_disk = request.root_disk or root_image()
    output = request.output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix=".job-", dir=cache_dir()) as scratch:
        job = Path(scratch)
        wheel = request.wheel or build_wheel(job)
        disk = job / "job.img"
        pack_job((wheel, *request.packages), request.command, request.files, disk)
        console = output / "console.log"
        words = " ".join([BASE_COMMAND_LINE, *request.kernel_parameters])
        parts = Parts(
            chosen, initramfs, words, root_disk, disk, console, request.cpus, request.more_disk
        )
        with step(f"boot, run, power off (Linux {chosen.release})"):
            try:
                boot(parts)
            except LabError as error:
                with suppress(LabError):
                    read_from_disk(disk, RESULT, output)  # the part that was written
                raise LabError(f"{error}; see the console: {console}") from error
        collect(disk, console, output)
    say(f"wrote {output}")
