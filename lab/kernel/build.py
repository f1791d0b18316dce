# SPDX-License-Identifier: Apache-2.0
"""Building the lab's kernel: Debian's source package with the patches of this folder."""

import shutil
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.kernel import Kernel

SOURCE = "linux-source-6.12"
_FOLDER = Path(__file__).parent
_SCRIPT = _FOLDER / "build_kernel.sh"
_CONFIG = _FOLDER / "lab.config"
_DEBUG_CONFIG = _FOLDER / "debug.config"
_PATCHES = _FOLDER / "patches"
_PACKAGES = (
    *("bc", "bison", "flex", "gcc", "libc6-dev", "libelf-dev", "make", "patch", "perl"),
    SOURCE,
)


def build_kernel(*, debug: bool = False) -> Kernel:
    """The patched kernel with its modules.

    Args:
        debug: with lockdep and KASAN.

    Raises:
        LabError: a patch does not fit the package, an option of its configuration cannot
            be had, or it does not compile.
    """
    tools = rootfs.tools(*_PACKAGES)
    configs = [_CONFIG, _DEBUG_CONFIG] if debug else [_CONFIG]
    patches = sorted(_PATCHES.glob("*.patch"))

    def build(directory: Path) -> None:
        shutil.copytree(_PATCHES, directory / "patches")
        shutil.copy(_SCRIPT, directory)
        wanted = "".join(path.read_text() for path in configs)
        (directory / _CONFIG.name).write_text(wanted)
        shared = f"{SHARED}/kernel"
        chroot(tools, ["sh", f"{shared}/{_SCRIPT.name}", SOURCE, shared], {"kernel": directory})

    texts = [path.read_text() for path in (_SCRIPT, *configs, *patches)]
    name = "kernel-lab-debug" if debug else "kernel-lab"
    directory = product(name, [tools, SOURCE, texts], build)
    (modules,) = (directory / "lib/modules").iterdir()
    return Kernel(directory, directory / "vmlinuz", modules.name)
