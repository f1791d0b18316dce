# SPDX-License-Identifier: Apache-2.0
"""The root file system of emulated hosts that start a guest: with QEMU and an ssh client."""

from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.commands import run
from lab.common.image import ROOT_LABEL, make_disk

_MORE = ("iproute2", "openssh-client", "qemu-system-x86")
_SPARE_MIB = 256


def root_image() -> Path:
    """The host's disk. It is read-only."""
    source = rootfs.tools(*rootfs.HOST, *_MORE)

    def build(directory: Path) -> None:
        tree = directory / "tree"
        tree.mkdir()
        run(["cp", "-a", "--reflink=auto", f"{source}/.", tree])
        (tree / "job").mkdir()
        site = tree / f"usr/local/lib/python{rootfs.PYTHON}/dist-packages"
        rootfs.pip_install(site, rootfs.FROM_INDEX)
        size = sum(f.lstat().st_blocks * 512 for f in tree.rglob("*"))
        mib = int(size / (1 << 20) * 1.1) + _SPARE_MIB
        make_disk(tree, directory / "root.img", label=ROOT_LABEL, mib=mib)
        run(["rm", "-rf", tree])

    return product("nested-image", [source, rootfs.FROM_INDEX, _SPARE_MIB], build) / "root.img"
