# SPDX-License-Identifier: Apache-2.0
"""Booting the Linux guest: a kernel, busybox, ipitrace_storm and a script, in QEMU's TCG."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.common import kernel, rootfs
from lab.common.cache import cache_dir
from lab.common.chroot import SHARED, chroot_command
from lab.common.collect import collect
from lab.common.commands import run
from lab.common.image import job_disk
from lab.common.initramfs import build_initramfs
from lab.common.steps import LabError, step
from lab.guest.module import build_module

_INIT = Path(__file__).with_name("init")
_SETS = ("disk=virtio_pci,virtio_blk,ext4",)
_PACKAGE = "qemu-system-x86"
_TIMEOUT_S = 900
# The emulated CPUs share one TSC, but have no CPU flag for it.
_COMMAND_LINE = (
    "console=ttyS0,115200 panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check"
)
# Without interrupt remapping, Linux keeps the APICs in xAPIC mode.
_X2APIC = ("-machine", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,eim=on")
_XAPIC = ("-machine", "pc")


@dataclass(frozen=True)
class Guest:
    """The guest to boot.

    Attributes:
        suite: of Debian, whose kernel it is.
        cpus: how many.
        x2apic: whether the APICs are in x2APIC mode.
        script: run by busybox' sh; /job has `ipitrace-storm`, `ipitrace_storm.ko`, `texts` and
            the empty folder `result`, which comes back.
        parameters: added to the kernel's command line.
        texts: more files of /job, by their names.
    """

    suite: str
    cpus: int
    x2apic: bool
    script: Path
    parameters: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def boot_guest(guest: Guest, output: Path) -> None:
    """Build missing products, boot the guest, copy the script's results to `output`.

    `output` has `console.log`, `dmesg.txt`, `stdout.txt`, `stderr.txt` and `status`, too.

    Raises:
        LabError: a step failed; the message names it.
    """
    module = build_module(guest.suite)
    chosen = kernel.fetch(guest.suite)
    if module.release != chosen.release:
        raise LabError(f"the headers are for {module.release}, the kernel is {chosen.release}")
    initramfs = build_initramfs(chosen, _INIT, _SETS)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix=".job-", dir=cache_dir()) as scratch:
        tree, disk = Path(scratch) / "tree", Path(scratch) / "job.img"
        (tree / "result").mkdir(parents=True)
        for file in ("ipitrace-storm", "ipitrace_storm.ko"):
            shutil.copy(module.directory / file, tree)
        shutil.copy(guest.script, tree / "run")
        for name, text in guest.texts:
            (tree / name).write_text(text)
        job_disk(tree, disk)
        with step(f"Linux {chosen.release} guest, {guest.cpus} CPUs"):
            _qemu(guest, chosen, initramfs, disk, output / "console.log")
        collect(disk, output / "console.log", output)


def _qemu(guest: Guest, chosen: kernel.Kernel, initramfs: Path, disk: Path, console: Path) -> None:
    lent = {
        "kernel": chosen.directory,
        "initramfs": initramfs.parent,
        "job": disk.parent,
        "console": console.parent,
    }
    machine = _X2APIC if guest.x2apic else _XAPIC
    cpus = f"-accel tcg,thread=multi -cpu max -smp {guest.cpus} -m 1024"
    screen = "-nodefaults -no-user-config -display none -no-reboot"
    qemu = [
        *("timeout", str(_TIMEOUT_S), "qemu-system-x86_64", *machine),
        *(*cpus.split(), *screen.split()),
        *("-serial", f"file:{SHARED}/console/{console.name}"),
        *("-kernel", f"{SHARED}/kernel/{chosen.image.name}"),
        *("-initrd", f"{SHARED}/initramfs/{initramfs.name}"),
        *("-append", " ".join([_COMMAND_LINE, *guest.parameters])),
        *("-drive", f"file={SHARED}/job/{disk.name},format=raw,if=virtio"),
    ]
    run(chroot_command(rootfs.tools(_PACKAGE), qemu, lent), name="QEMU")
