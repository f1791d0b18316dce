# SPDX-License-Identifier: Apache-2.0
"""The disk of emulated hosts that start a guest: with QEMU and an ssh client."""

from pathlib import Path

from lab.common import image

_MORE = ("iproute2", "openssh-client", "qemu-system-x86")


def root_image() -> Path:
    """The host's disk. It is read-only."""
    return image.root_image(*_MORE)
