# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.mirror import debian_mirror

_SCRIPT = Path(__file__).with_name("fetch_kernel.sh")


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    Attributes:
        directory: the product; modprobe finds the modules with `--dirname` of it.
        image: its vmlinuz.
        release: as `uname -r` prints it.
    """

    directory: Path
    image: Path
    release: str


def fetch(suite: str = rootfs.SUITE) -> Kernel:
    """The kernel that `linux-image-amd64` of a suite (also backports, sid) stands for.

    Raises:
        LabError: the suite has none.
    """
    mirror = debian_mirror()
    tools = rootfs.tools()

    def build(directory: Path) -> None:
        shutil.copy(_SCRIPT, directory)
        shared = f"{SHARED}/kernel"
        fetch_kernel = ["sh", f"{shared}/{_SCRIPT.name}", mirror, suite, shared]
        chroot(tools, fetch_kernel, {"kernel": directory})

    directory = product(f"kernel-{suite}", [mirror, suite, _SCRIPT.read_text()], build)
    (modules,) = (directory / "lib/modules").iterdir()
    return Kernel(directory, directory / "vmlinuz", modules.name)
