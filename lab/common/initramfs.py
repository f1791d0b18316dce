# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, the modules for disk and KVM, and `init`."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.kernel import Kernel

_INIT = Path(__file__).with_name("init")
_SCRIPT = Path(__file__).with_name("make_initramfs.sh")
_SETS = ("disk=ata_piix,sd_mod,ext4", "kvm_amd=kvm_amd", "kvm_intel=kvm_intel")


def build_initramfs(kernel: Kernel, init: Path = _INIT, sets: Sequence[str] = _SETS) -> Path:
    """The initramfs of a kernel: a gzipped cpio file.

    Args:
        kernel: whose modules go in.
        init: the first process, a busybox script.
        sets: the modules it may load, as make_initramfs.sh wants them.

    Raises:
        LabError: a module is missing.
    """
    tools = rootfs.tools()

    def build(directory: Path) -> None:
        shutil.copy(init, directory / "init")
        shutil.copy(_SCRIPT, directory)
        inside = f"{SHARED}/initramfs"
        places = [f"{SHARED}/kernel", kernel.release, inside]
        lent = {"initramfs": directory, "kernel": kernel.directory}
        chroot(tools, ["sh", f"{inside}/{_SCRIPT.name}", *places, *sets], lent)

    inputs = [kernel.directory, tools, init.read_text(), _SCRIPT.read_text(), sets]
    return product("initramfs", inputs, build) / "initramfs"
