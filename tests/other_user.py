# SPDX-License-Identifier: Apache-2.0
"""Programs that run as another user, wherever the checkout lies.

A home directory is often closed to other users (mode 0700 or 0750). A process of another user
then cannot start the checkout's .venv/bin/python or import ipitrace from the checkout. Every test
that runs such a process starts it by as_user() or behind reachable(), and gives it files in an
open_folder(): pytest's own folders are closed as well.
"""

import contextlib
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NOBODY: Final = 65534
CHECKOUT: Final = Path(__file__).resolve().parents[1]

_OPEN: Final = stat.S_IROTH | stat.S_IXOTH

# Arguments: the outermost closed folder, the checkout, and the command. A tmpfs hides that folder,
# and the checkout's entries are mounted in it under their own paths. The entries are reached by
# the working directory, because their paths lead into the tmpfs by then.
_MOUNT_CHECKOUT: Final = """
closed=$1 checkout=$2
shift 2
umask 022
(
    cd "$checkout"
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$checkout"
    for entry in * .[!.]*; do
        if test -L "$entry"; then
            cp -P "$entry" "$checkout/"
        elif test -e "$entry"; then
            if test -d "$entry"; then mkdir "$checkout/$entry"; else : >"$checkout/$entry"; fi
            mount --no-canonicalize --bind "./$entry" "$checkout/$entry"
        fi
    done
)
exec "$@"
"""


def reachable(checkout: Path = CHECKOUT) -> tuple[str, ...]:
    """A command of root's that runs another where every user can enter the checkout.

    It is empty if every user can enter the checkout anyway. Otherwise it gives the other command a
    mount namespace of its own. The paths stay the same, and nothing changes outside of it.
    """
    for folder in (*reversed(checkout.parents), checkout):
        if folder.stat().st_mode & _OPEN != _OPEN:
            script = ("sh", "-ec", _MOUNT_CHECKOUT, "sh", str(folder), str(checkout))
            return ("unshare", "--mount", *script)
    return ()


def as_user(uid: int = NOBODY) -> tuple[str, ...]:
    """A command of root's that runs another as user and group `uid`, without other groups."""
    become = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    return (*reachable(), *become)


@contextlib.contextmanager
def open_folder(mode: int = 0o755) -> Iterator[Path]:
    """A new folder that every user can enter, also where TMPDIR is closed."""
    with tempfile.TemporaryDirectory(prefix="ipitrace-", dir="/tmp") as name:
        Path(name).chmod(mode)
        yield Path(name)
