# SPDX-License-Identifier: Apache-2.0
"""Booting the AMD host: QEMU's TCG, which emulates SVM with nested paging.

It has no AVIC. `-cpu max` sets the hypervisor leaf TCGTCGTCGTCG.
"""

from lab.common import rootfs
from lab.common.chroot import SHARED, chroot_command
from lab.common.commands import run
from lab.common.session import Parts

_PACKAGE = "qemu-system-x86"
# On a busy machine the emulated timer interrupt may be late when Linux checks the timer, and
# Linux panics. Under KVM Linux does not check it either (arch/x86/kernel/kvm.c).
_PARAMETER = "no_timer_check"
_TIMEOUT_S = 2700  # five times the longest duration on an idle machine


def boot(parts: Parts) -> None:
    """Boot and wait for power-off.

    Raises:
        LabError: QEMU fails, or is not done after 45 minutes.
    """
    lent = {
        "kernel": parts.kernel.directory,
        "initramfs": parts.initramfs.parent,
        "root": parts.root_disk.parent,
        "job": parts.job_disk.parent,
        "console": parts.console.parent,
    }
    drives = [
        _drive(0, f"root/{parts.root_disk.name}", "on"),
        _drive(1, f"job/{parts.job_disk.name}", "off"),
    ]
    if parts.more_disk is not None:
        lent["more"] = parts.more_disk.parent
        drives.append(_drive(2, f"more/{parts.more_disk.name}", "on"))
    machine = f"-machine pc -accel tcg,thread=multi -cpu max -smp {parts.cpus} -m 3072"
    screen = "-nodefaults -no-user-config -display none -no-reboot"
    qemu = [
        *("timeout", str(_TIMEOUT_S), "qemu-system-x86_64", *machine.split(), *screen.split()),
        *("-serial", f"file:{SHARED}/console/{parts.console.name}"),
        *("-kernel", f"{SHARED}/kernel/{parts.kernel.image.name}"),
        *("-initrd", f"{SHARED}/initramfs/{parts.initramfs.name}"),
        *("-append", f"{parts.command_line} {_PARAMETER}"),
        *(word for drive in drives for word in ("-drive", drive)),
    ]
    run(chroot_command(rootfs.tools(_PACKAGE), qemu, lent), name="QEMU")


def _drive(index: int, place: str, snapshot: str) -> str:
    return f"file={SHARED}/{place},format=raw,if=ide,index={index},snapshot={snapshot}"
