# SPDX-License-Identifier: Apache-2.0
"""The root file system of the emulated host that has the other tools."""

from pathlib import Path

from lab.common import image, rootfs
from lab.common.chroot import SHARED, chroot

PACKAGES = ("bpfcc-tools", "bpftrace", "linux-perf", "trace-cmd")


def root_image() -> Path:
    """The host's disk. It is read-only."""
    return image.root_image(*PACKAGES)


def versions() -> dict[str, str]:
    """The version of each of PACKAGES."""
    form = "--showformat=${Package} ${Version}\n"
    listed = chroot(rootfs.host(*PACKAGES), ["dpkg-query", "--show", form, *PACKAGES])
    return dict(line.split(" ", 1) for line in listed.splitlines())


def run_on_folder(command: list[str], folder: Path, file: str) -> str:
    """The stdout of one of the host's programs, run on this machine.

    Args:
        command: the program and its options.
        folder: a folder of this machine.
        file: its last argument, a file of that folder.

    Raises:
        LabError: it failed.
    """
    place = f"{SHARED}/left/{file}"
    return chroot(rootfs.host(*PACKAGES), [*command, place], {"left": folder})
