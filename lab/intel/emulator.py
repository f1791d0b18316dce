# SPDX-License-Identifier: Apache-2.0
"""The emulator of the Intel host: Bochs, built from Debian's source with the lab's patches.

Debian's own binaries do not serve: they have the defects that patches/ describes.
"""

from pathlib import Path

from lab.common import rootfs
from lab.common.script import fetched_by

_SCRIPT = Path(__file__).with_name("build_emulator.sh")
_PATCHES = Path(__file__).with_name("patches")
_COMPILERS = ("g++", "make", "patch", "xz-utils")


def build_emulator() -> Path:
    """The program; it runs inside the tools' root in which it was built.

    Raises:
        LabError: the suite has no source of it, a patch does not fit, or it does not compile.
    """
    built = fetched_by(_SCRIPT, "emulator", rootfs.SUITE, packages=_COMPILERS, beside=[_PATCHES])
    return built / "bochs"
