# SPDX-License-Identifier: Apache-2.0
"""Running commands inside a root file system.

Each command has its own mount and process namespaces: its mounts and children disappear
when it ends or this program is killed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.common.commands import run

SHARED = "/lab"
"""The folder of a root file system below which lent folders are mounted."""

_ENTER = """
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmp "$root/tmp"
mount -t tmpfs lab "$root/lab"
while [ "$1" != -- ]; do
    mkdir "$root/lab/$1"
    mount --bind "$2" "$root/lab/$1"
    shift 2
done
shift
exec chroot "$root" "$@"
"""
_NAMESPACES = "unshare --mount --propagation private --pid --fork --kill-child"


def chroot_command(
    root: Path, command: Sequence[str], lent: Mapping[str, Path] | None = None
) -> list[str]:
    """The command line that runs `command` inside `root`.

    Args:
        root: a root file system of `rootfs`.
        command: the command, with paths as seen from inside.
        lent: folders of this machine, by their names below SHARED inside.
    """
    binds = [word for name, path in (lent or {}).items() for word in (name, str(path))]
    script = ["sh", "-eu", "-c", _ENTER, "sh", str(root), *binds, "--", *command]
    environment = [
        "env",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
        "HOME=/root",
        "TMPDIR=/tmp",
    ]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return [*environment, path, *_NAMESPACES.split(), *script]


def chroot(root: Path, command: Sequence[str], lent: Mapping[str, Path] | None = None) -> str:
    """Run `command` inside `root`; return its stdout.

    Raises:
        LabError: the command failed.
    """
    return run(chroot_command(root, command, lent), name=command[0])
