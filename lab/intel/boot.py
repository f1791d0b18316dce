# SPDX-License-Identifier: Apache-2.0
"""Booting the Intel host: Bochs, which emulates VMX with APICv and posted interrupts.

The kernel is on a CD, because Bochs has no loader of its own; GRUB starts it.
Bochs runs both CPUs in turn in one thread, and its only clock is its own tick
counter: the same disks give the same run.
"""

import shutil
import tempfile
from pathlib import Path

from lab.common import rootfs
from lab.common.chroot import SHARED, chroot
from lab.common.session import Parts
from lab.intel.emulator import build_emulator

_PACKAGES = ("bochsbios", "grub-pc-bin", "vgabios", "xorriso")
_FOLDER = Path(__file__).parent
_TIMEOUT_S = 3600  # ten times the duration on an idle machine
_COMMAND_LINE = (
    # Pause-loop exits occur when an emulated CPU spins. They have no significance here.
    "kvm_intel.ple_gap=0",
    # A CPU that idles in MWAIT wakes up late in Bochs, often only at its next timer tick:
    # loading ext4 takes 3 to 16 s of the host's time instead of 0.4 s.
    "idle=halt",
    # How a kernel restarts after a panic. Bochs then ends instead of booting again.
    "reboot=triple",
)
_MORE_DISK = (
    "ata1-slave: type=disk, mode=volatile, path=/lab/more/MORE_DISK, journal=/lab/scratch/more\n"
)


ENABLE_IPIV = "kvm_intel.enable_ipiv=1"
"""With this kernel parameter the CPUs have IPI virtualization (patch 11), otherwise not.

Where a CPU has it, kvm_intel uses it unless the parameter is 0.
"""

STAMPS = "stamps.txt"
"""The emulator's stamps, beside the console's log; see patch 10."""


def boot(parts: Parts, *, stamped: bool = False) -> None:
    """Boot and wait for power-off.

    Leaves Bochs' own log beside the console's. Locks on the disks that a killed Bochs
    leaves are in the run's own scratch folder and go with it.

    Args:
        parts: what to boot.
        stamped: the host may ask for stamps of its kernel's places.

    Raises:
        LabError: Bochs fails, or is not done after an hour.
    """
    emulator = build_emulator()
    tools = rootfs.tools(*_PACKAGES)
    with tempfile.TemporaryDirectory(dir=parts.job_disk.parent) as name:
        scratch = Path(name)
        for script in ("make_cd.sh", "run_bochs.sh"):
            shutil.copy(_FOLDER / script, scratch)
        (scratch / "bochsrc").write_text(_bochsrc(parts))
        lent = {
            "kernel": parts.kernel.directory,
            "initramfs": parts.initramfs.parent,
            "scratch": scratch,
            "emulator": emulator.parent,
            "root": parts.root_disk.parent,
            "job": parts.job_disk.parent,
            "console": parts.console.parent,
        }
        if parts.more_disk is not None:
            lent["more"] = parts.more_disk.parent
        make_cd = [
            *("sh", f"{SHARED}/scratch/make_cd.sh"),
            f"{SHARED}/kernel/{parts.kernel.image.name}",
            f"{SHARED}/initramfs/{parts.initramfs.name}",
            " ".join((*_COMMAND_LINE, parts.command_line)),
            f"{SHARED}/scratch/cd.iso",
        ]
        chroot(tools, make_cd, lent)
        run_bochs = [
            *("sh", f"{SHARED}/scratch/run_bochs.sh"),
            f"{SHARED}/emulator/{emulator.name}",
            f"{SHARED}/scratch/bochsrc",
            f"{SHARED}/console/bochs.log",
            str(_TIMEOUT_S),
            *([f"{SHARED}/console/{STAMPS}"] if stamped else []),
        ]
        chroot(tools, run_bochs, lent)


def _bochsrc(parts: Parts) -> str:
    text = (_FOLDER / "bochsrc").read_text()
    names = {"ROOT_DISK": parts.root_disk, "JOB_DISK": parts.job_disk, "CONSOLE": parts.console}
    for word, path in names.items():
        text = text.replace(word, path.name)
    if parts.more_disk is not None:
        text += _MORE_DISK.replace("MORE_DISK", parts.more_disk.name)
    ipiv = ENABLE_IPIV in parts.command_line.split()
    return text.replace("CPUS", str(parts.cpus)).replace("IPIV", str(int(ipiv)))
