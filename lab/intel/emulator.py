# SPDX-License-Identifier: Apache-2.0
"""The emulator of the Intel host: Bochs, built from Debian's source with our patches.

Debian's own binaries do not serve: they have the defects that patches/ describes.
"""

import shutil
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.mirror import debian_mirror

_SCRIPT = Path(__file__).with_name("build_emulator.sh")
_PATCHES = Path(__file__).with_name("patches")
_COMPILERS = ("g++", "make", "patch", "xz-utils")


def build_emulator() -> Path:
    """The program; it runs inside the tools' root that it was built in.

    Raises:
        LabError: the suite has no source of it, a patch does not fit, or it does not compile.
    """
    mirror = debian_mirror()
    tools = rootfs.tools(*_COMPILERS)
    patches = sorted(_PATCHES.glob("*.patch"))

    def build(directory: Path) -> None:
        shutil.copytree(_PATCHES, directory / "patches")
        shutil.copy(_SCRIPT, directory)
        shared = f"{SHARED}/emulator"
        command = ["sh", f"{shared}/{_SCRIPT.name}", mirror, rootfs.SUITE, shared]
        chroot(tools, command, {"emulator": directory})

    texts = [path.read_text() for path in (_SCRIPT, *patches)]
    return product("emulator", [mirror, rootfs.SUITE, tools, texts], build) / "bochs"
