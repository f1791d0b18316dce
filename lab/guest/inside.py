# SPDX-License-Identifier: Apache-2.0
"""The Debian guest, started by a QEMU inside an emulated host under that host's KVM."""

from collections.abc import Sequence
from pathlib import Path

from lab.common.kernel import Kernel
from lab.guest.machine import Ssh, guest_initramfs, qemu_command
from lab.guest.module import Build

_START = Path(__file__).with_name("start_guest.sh")
_MACHINE = ("-machine", "pc", "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "768")


def guest_files(
    scratch: Path,
    kernel: Kernel,
    module: Build,
    *,
    ssh: Ssh | None = None,
    environment: Sequence[str] = (),
    machine: Sequence[str] = (),
) -> dict[str, Path]:
    """What a job finds in /job to start the guest by start_guest.sh and put ipitrace_storm into it.

    The guest's disk is the host's third.

    Args:
        scratch: an empty folder, kept until the job's disk is made.
        kernel: the guest's.
        module: ipitrace_storm for that kernel.
        ssh: how it may be reached beside its agent.
        environment: of QEMU, as VARIABLE=VALUE.
        machine: more of its command line.
    """
    words = qemu_command(
        image="/job/vmlinuz",
        initramfs="/job/initramfs",
        disk="/tmp/disk",  # noqa: S108 - inside the host, which has one user
        agent="/tmp/agent",  # noqa: S108
        console="/tmp/console",  # noqa: S108
        ssh=ssh,
    )
    qemu = scratch / "qemu"
    qemu.write_text("\n".join([*environment, *words, *_MACHINE, *machine]) + "\n")
    return {
        "start_guest.sh": _START,
        "qemu": qemu,
        "vmlinuz": kernel.image,
        "initramfs": guest_initramfs(kernel, network=ssh is not None),
        "ipitrace_storm.ko": module.directory / "ipitrace_storm.ko",
    }
