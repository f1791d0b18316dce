# SPDX-License-Identifier: Apache-2.0
"""Building the lab's kernel: Debian's source package with the patches of this folder."""

from pathlib import Path

from lab.common.kernel import Kernel
from lab.common.script import made_by

SOURCE = "linux-source-6.12"
_FOLDER = Path(__file__).parent
_SCRIPT = _FOLDER / "build_kernel.sh"
_CONFIG = _FOLDER / "lab.config"
_DEBUG_CONFIG = _FOLDER / "debug.config"
_PATCHES = _FOLDER / "patches"
PACKAGES = (
    *("bc", "bison", "flex", "gcc", "libc6-dev", "libelf-dev", "make", "patch", "perl"),
    SOURCE,
)
"""Of the tools' root that it is built in."""


def build_kernel(*, debug: bool = False) -> Kernel:
    """The patched kernel with its modules, and what others are built against in usr/src.

    Args:
        debug: with lockdep and KASAN.

    Raises:
        LabError: a patch does not fit the package, an option of its configuration cannot
            be had, or it does not compile.
    """
    configs = [_CONFIG, _DEBUG_CONFIG] if debug else [_CONFIG]
    directory = made_by(
        _SCRIPT,
        "kernel-lab-debug" if debug else "kernel-lab",
        [SOURCE, *(config.name for config in configs)],
        packages=PACKAGES,
        beside=[*configs, _PATCHES],
    )
    (modules,) = (directory / "lib/modules").iterdir()
    return Kernel(directory, directory / "vmlinuz", modules.name)
