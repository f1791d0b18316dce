# SPDX-License-Identifier: Apache-2.0
"""Booting the AMD host: QEMU's TCG, which emulates SVM with nested paging.

It has no AVIC. `-cpu max` sets the hypervisor leaf TCGTCGTCGTCG.
"""

from lab.common import rootfs
from lab.common.chroot import SHARED, chroot_command
from lab.common.commands import run
from lab.common.session import Parts

_PACKAGE = "qemu-system-x86"
_TIMEOUT_S = 1800  # ten times what it takes where nothing else runs


def boot(parts: Parts) -> None:
    """Boot and wait for power-off.

    Raises:
        LabError: QEMU fails, or is not done after half an hour.
    """
    lent = {
        "kernel": parts.kernel.directory,
        "initramfs": parts.initramfs.parent,
        "root": parts.root_disk.parent,
        "job": parts.job_disk.parent,
        "console": parts.console.parent,
    }
    root_disk = f"file={SHARED}/root/{parts.root_disk.name},format=raw,if=ide,index=0,snapshot=on"
    job_disk = f"file={SHARED}/job/{parts.job_disk.name},format=raw,if=ide,index=1"
    machine = f"-machine pc -accel tcg,thread=multi -cpu max -smp {parts.cpus} -m 2048"
    screen = "-nodefaults -no-user-config -display none -no-reboot"
    qemu = [
        *("timeout", str(_TIMEOUT_S), "qemu-system-x86_64", *machine.split(), *screen.split()),
        *("-serial", f"file:{SHARED}/console/{parts.console.name}"),
        *("-kernel", f"{SHARED}/kernel/{parts.kernel.image.name}"),
        *("-initrd", f"{SHARED}/initramfs/{parts.initramfs.name}"),
        *("-append", parts.command_line),
        *("-drive", root_disk, "-drive", job_disk),
    ]
    run(chroot_command(rootfs.tools(_PACKAGE), qemu, lent), name="QEMU")
