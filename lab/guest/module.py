# SPDX-License-Identifier: Apache-2.0
"""ipitrace_storm, built for the kernels that Debian has."""

import hashlib
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.job import CHECKOUT
from lab.common.kernel import Kernel
from lab.common.script import fetched_by

_FETCH = Path(__file__).with_name("fetch_headers.sh")
_FETCH_SPARSE = Path(__file__).with_name("fetch_sparse.sh")
_BUILD = Path(__file__).with_name("build_module.sh")
_PACKAGES = ("dkms", "gcc", "gcc-12", "libc6-dev", "libelf1t64", "make", "pahole", "sparse")
_SOURCES = CHECKOUT / "guest-tools"


@dataclass(frozen=True)
class Toolchain:
    """The build environment of a suite's kernel.

    Attributes:
        compiler: the nearest to the kernel's own that the builder's suite has.
        sparse_of: the suite whose sparse can read the kernel's headers; None: the builder's.
        dkms: whether to build by DKMS, too; it wants the kernel's very compiler.
    """

    compiler: str = "gcc"
    sparse_of: str | None = None
    dkms: bool = False


# From the mirror's oldest to its newest; only sid's sparse supports __typeof_unqual__ of 7.x.
SUITES = {
    "bullseye": Toolchain("gcc-12"),
    "bookworm": Toolchain("gcc-12"),
    "trixie": Toolchain(dkms=True),
    "trixie-backports": Toolchain(sparse_of="sid"),
}


@dataclass(frozen=True)
class Build:
    """A module and its helper.

    Attributes:
        directory: has `ipitrace_storm.ko` and `ipitrace-storm`, the static helper.
        release: of the kernel it is for, as `uname -r` prints it.
        warnings: what compiler (W=1) and sparse said about our sources.
    """

    directory: Path
    release: str
    warnings: str


def build_module(suite: str) -> Build:
    """Build the checkout's module for the kernel of a suite.

    Raises:
        LabError: the suite has no headers, or the build fails.
    """
    return _build(suite, _headers(suite), SUITES[suite])


def build_module_for(kernel: Kernel) -> Build:
    """Build the module for a kernel that the lab built.

    Raises:
        LabError: the build fails.
    """
    return _build("lab", kernel.directory, Toolchain())


def _build(name: str, headers: Path, toolchain: Toolchain) -> Build:
    tools = rootfs.tools(*_PACKAGES)
    sparse = None if toolchain.sparse_of is None else _sparse(toolchain.sparse_of)

    def build(directory: Path) -> None:
        sources = directory / "sources"
        for file in _sources():
            place = sources / file.relative_to(_SOURCES)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        shutil.copy(_BUILD, directory)
        inside = f"{SHARED}/module"
        places = [f"{SHARED}/headers", f"{inside}/sources", inside]
        lent = {"module": directory, "headers": headers}
        if sparse is not None:
            lent["sparse"] = sparse
        checker = "sparse" if sparse is None else f"{SHARED}/sparse/sparse"
        options = [toolchain.compiler, checker, str(int(toolchain.dkms))]
        chroot(tools, ["sh", f"{inside}/{_BUILD.name}", *places, *options], lent)
        shutil.rmtree(sources)

    hashes = [[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in _sources()]
    inputs = [headers, tools, sparse, toolchain.__dict__, _BUILD.read_text(), hashes]
    directory = product(f"module-{name}", inputs, build)
    release, warnings = ((directory / name).read_text() for name in ("release", "warnings"))
    return Build(directory, release.strip(), warnings)


def _sources() -> list[Path]:
    module = _SOURCES / "ipitrace_storm"
    files = [*module.glob("*.[ch]"), *(module / name for name in ("Kbuild", "Makefile"))]
    return sorted([*files, module / "dkms.conf", _SOURCES / "storm_abi.h"])


@cache
def _headers(suite: str) -> Path:
    return fetched_by(_FETCH, f"headers-{suite}", suite)


@cache
def _sparse(suite: str) -> Path:
    return fetched_by(_FETCH_SPARSE, f"sparse-{suite}", suite)
