# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, the modules for disk and KVM, and `init`."""

import shutil
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.kernel import Kernel

_INIT = Path(__file__).with_name("init")
_SCRIPT = Path(__file__).with_name("make_initramfs.sh")
_SETS = ("disk=ata_piix,sd_mod,ext4", "kvm_amd=kvm_amd", "kvm_intel=kvm_intel")


def build_initramfs(kernel: Kernel) -> Path:
    """The initramfs of a kernel: a gzipped cpio file.

    Raises:
        LabError: a module is missing.
    """
    tools = rootfs.tools()

    def build(directory: Path) -> None:
        for file in (_INIT, _SCRIPT):
            shutil.copy(file, directory)
        inside = f"{SHARED}/initramfs"
        places = [f"{SHARED}/kernel", kernel.release, inside]
        lent = {"initramfs": directory, "kernel": kernel.directory}
        chroot(tools, ["sh", f"{inside}/{_SCRIPT.name}", *places, *_SETS], lent)

    inputs = [kernel.directory, tools, _INIT.read_text(), _SCRIPT.read_text(), _SETS]
    return product("initramfs", inputs, build) / "initramfs"
