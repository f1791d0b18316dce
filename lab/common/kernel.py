# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels."""

from dataclasses import dataclass
from pathlib import Path

from lab.common import rootfs
from lab.common.script import fetched_by

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
    """The kernel to which `linux-image-amd64` of a suite (also backports, sid) refers.

    Raises:
        LabError: the suite has none.
    """
    directory = fetched_by(_SCRIPT, f"kernel-{suite}", suite)
    (modules,) = (directory / "lib/modules").iterdir()
    return Kernel(directory, directory / "vmlinuz", modules.name)
