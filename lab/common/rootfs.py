# SPDX-License-Identifier: Apache-2.0
"""Root file systems, made of Debian's packages."""

import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.commands import run
from lab.common.mirror import debian_mirror
from lab.common.steps import LabError

SUITE = "trixie"
PYTHON = "3.13"  # the suite's
TOOLS = ("busybox-static", "cpio", "e2fsprogs", "kmod", "xz-utils", "zstd")
HOST = (
    "kmod",
    "python3",
    "python3-bpfcc",
    "python3-click",
    "python3-numpy",
    "python3-psutil",
    "python3-rich",
    "python3-tabulate",
)
FROM_INDEX = ("pyarrow",)  # Debian has no package of it
_NOT_NEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/lib/apt/lists")


@cache
def base() -> Path:
    """A minimal Debian that apt can add packages to, in the product's folder `root`."""
    mirror = debian_mirror()

    def build(directory: Path) -> None:
        if shutil.which("debootstrap") is None:
            raise LabError("debootstrap is not installed: run apt-get install debootstrap")
        more = ["--include=ca-certificates"] if mirror.startswith("https:") else []
        root = directory / "root"
        namespace = ["unshare", "--mount", "--propagation", "private"]
        run([*namespace, "debootstrap", "--variant=minbase", *more, SUITE, root, mirror])
        (root / SHARED.strip("/")).mkdir()

    return product("base", [SUITE, mirror], build)


@cache
def tools(*packages: str) -> Path:
    """A root file system with the programs to build and boot: TOOLS and `packages`."""
    plain = base()
    wanted = sorted({*TOOLS, *packages})

    def build(directory: Path) -> None:
        _copy_with_packages(plain, directory, wanted)

    return product("tools", [plain, wanted], build)


@cache
def host(*packages: str) -> Path:
    """The root file system of an emulated host: HOST and `packages`, without ipitrace."""
    plain = base()
    wanted = sorted({*HOST, *packages})

    def build(directory: Path) -> None:
        _copy_with_packages(plain, directory, wanted)
        pip_install(directory / f"usr/local/lib/python{PYTHON}/dist-packages", FROM_INDEX)
        for name in _NOT_NEEDED:
            shutil.rmtree(directory / name)
        (directory / "job").mkdir()

    return product("host", [plain, wanted, FROM_INDEX, _NOT_NEEDED], build)


def pip_install(directory: Path, packages: Sequence[str | Path]) -> None:
    """Put wheels for the suite's Python into `directory`, with the machine's own pip.

    Raises:
        LabError: pip fails.
    """
    options: list[str | Path] = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    target: list[str | Path] = ["--target", directory, "--python-version", PYTHON]
    tags = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64")
    platforms = [word for tag in tags for word in ("--platform", tag)]
    run([sys.executable, "-P", "-m", "pip", "install", *options, *target, *platforms, *packages])


def _copy_with_packages(base_product: Path, directory: Path, packages: Sequence[str]) -> None:
    run(["cp", "-a", "--reflink=auto", f"{base_product}/root/.", directory])
    chroot(directory, ["apt-get", "-qq", "update"])
    chroot(directory, ["apt-get", "-qq", "--no-install-recommends", "install", *packages])
    chroot(directory, ["apt-get", "clean"])
