# SPDX-License-Identifier: Apache-2.0
"""Products that a shell script builds inside a tools' root file system."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.common import rootfs
from lab.common.cache import product
from lab.common.chroot import SHARED, chroot
from lab.common.mirror import debian_mirror

_APT = Path(__file__).with_name("apt.sh")


def made_by(
    script: Path,
    name: str,
    arguments: Sequence[str],
    *,
    packages: Sequence[str] = (),
    beside: Sequence[Path] = (),
) -> Path:
    """The product that `script` builds in the folder given as its first argument.

    Args:
        script: a script for sh.
        name: the name of the product.
        arguments: the script's arguments after the folder.
        packages: packages of rootfs.SUITE that it needs in addition to rootfs.TOOLS.
        beside: files and folders of files to copy into that folder first.

    Raises:
        LabError: it failed.
    """
    tools = rootfs.tools(*packages)

    def build(directory: Path) -> None:
        for path in (script, *beside):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, directory / path.name)
        inside = f"{SHARED}/product"
        command = ["sh", f"{inside}/{script.name}", inside, *arguments]
        chroot(tools, command, {"product": directory})

    texts = [path.read_text() for path in (script, *_files(beside))]
    return product(name, [tools, list(arguments), texts], build)


def fetched_by(
    script: Path,
    name: str,
    suite: str,
    *,
    packages: Sequence[str] = (),
    beside: Sequence[Path] = (),
) -> Path:
    """The same for a script that takes packages of `suite` from the mirror, by apt.sh.

    Raises:
        LabError: the script failed, for example because the suite lacks a package.
    """
    arguments = [debian_mirror(), suite]
    return made_by(script, name, arguments, packages=packages, beside=[_APT, *beside])


def _files(paths: Sequence[Path]) -> list[Path]:
    return [
        file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
