# SPDX-License-Identifier: Apache-2.0
"""Disks: ext4 file systems in files, without a partition table."""

import shutil
import uuid
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.steps import LabError

ROOT_LABEL = "lab-root"
JOB_LABEL = "lab-job"
_MIB = 1 << 20
_ROOT_SPARE_MIB = 128
_JOB_MIB = 256
_EPOCH = 1735689600  # the time of all files, as SOURCE_DATE_EPOCH


def root_image(*packages: str) -> Path:
    """The disk with the emulated host's root file system. It is read-only.

    Args:
        packages: packages of rootfs.SUITE that it has in addition to rootfs.HOST.
    """
    source = rootfs.host(*packages)

    def build(directory: Path) -> None:
        size = sum(f.lstat().st_blocks * 512 for f in source.rglob("*"))
        mib = int(size / _MIB * 1.1) + _ROOT_SPARE_MIB
        make_disk(source, directory / "root.img", label=ROOT_LABEL, mib=mib)

    return product("image", [source], build) / "root.img"


def job_disk(tree: Path, disk: Path) -> None:
    """Make the disk that contains the job and receives its result.

    Raises:
        LabError: the tree does not fit.
    """
    make_disk(tree, disk, label=JOB_LABEL, mib=_JOB_MIB)


def make_disk(tree: Path, disk: Path, *, label: str, mib: int) -> None:
    """Make a sparse file of `mib` MiB that holds an ext4 file system with `tree` in it.

    The size is whole cylinders of 16 heads and 63 sectors, as emulators of old disks want.
    The same tree gives the same bytes: no time of day and no random identifiers.
    """
    cylinder = 16 * 63 * 512
    with disk.open("wb") as file:
        file.truncate((mib * _MIB // cylinder + 1) * cylinder)
    place = f"{SHARED}/disk/{disk.name}"
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, label))
    extended = f"lazy_itable_init=0,root_owner=0:0,hash_seed={identity}"
    features = ["-q", "-F", "-L", label, "-U", identity, "-E", extended]
    make = ["env", f"SOURCE_DATE_EPOCH={_EPOCH}", "mkfs.ext4", *features]
    lent = {"tree": tree, "disk": disk.parent}
    chroot(rootfs.tools(), [*make, "-d", f"{SHARED}/tree", place], lent)


def read_from_disk(disk: Path, folder: str, target: Path) -> None:
    """Copy a folder of a disk's file system to `target`, without mounting it.

    Raises:
        LabError: the disk has no such folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    lent = {"disk": disk.parent, "target": target}
    request = f"rdump {folder} {SHARED}/target"
    chroot(rootfs.tools(), ["debugfs", "-R", request, f"{SHARED}/disk/{disk.name}"], lent)
    copied = target / Path(folder).name
    if not copied.is_dir():
        raise LabError(f"{disk} has no folder {folder}")
    for entry in copied.iterdir():
        shutil.move(entry, target / entry.name)
    copied.rmdir()
