# SPDX-License-Identifier: Apache-2.0
"""Search paths for programs and Python packages, without folders that other users may write.

ipitrace runs as root in any current folder. Files of that folder, or of another folder that
other users may write, must never be executed as a part of ipitrace.

This module imports only modules that the interpreter has already loaded: before clean() is
called, an import may find a file in the current folder.
"""

import os
import site
import stat
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - see above


def clean() -> None:
    """Remove folders that other users may write from this process's import path.

    Call it before the first import of a module that is not ipitrace's. `python -m` puts the
    current folder first on the path. An empty or relative entry of PYTHONPATH becomes the
    current folder, too. ipitrace's own folder always stays on the path.
    """
    sys.path[:] = safe_entries(sys.path[1:] if _begins_with_cwd() else sys.path)


def safe_entries(entries: list[str]) -> list[str]:
    """The entries of sys.path that are absolute and that no other user may write.

    The interpreter's own folders are kept, because a user who may write to them controls the
    interpreter already. The folder that contains ipitrace is kept, too.
    """
    home = os.path.dirname(_PACKAGE)  # noqa: PTH120
    own = {home, *site.getsitepackages()}
    prefixes = tuple(f"{p}/" for p in {sys.prefix, sys.base_prefix, sys.base_exec_prefix})
    relative = set(map(os.path.abspath, _relative(os.environ.get("PYTHONPATH", ""))))
    kept = [
        entry
        for entry in dict.fromkeys(entries)
        if entry in own
        or (
            os.path.isabs(entry)  # noqa: PTH117
            and entry not in relative
            and (entry.startswith(prefixes) or not others_may_write(entry))
        )
    ]
    return kept if home in kept else [home, *kept]


def others_may_write(path: str) -> bool:
    """Whether a user other than root and us could replace `path` or put a file into it.

    Under sudo the caller of sudo is trusted, too. A folder above `path` may be sticky, as /tmp
    is: other users cannot rename our entries in it. A path that does not exist is not trusted.
    """
    caller = os.environ.get("SUDO_UID", "")
    ours = {0, os.geteuid(), int(caller) if caller.isascii() and caller.isdigit() else 0}
    for start in {os.path.abspath(path), os.path.realpath(path)}:  # noqa: PTH100
        place, inner = start, True
        while True:
            try:
                found = os.stat(place)  # noqa: PTH116
            except OSError:
                return True
            # A user's private group has the number of the user (useradd's USERGROUPS_ENAB).
            group = found.st_mode & stat.S_IWGRP and (
                found.st_gid not in {0, found.st_uid} or _has_acl(place)
            )
            open_to_all = group or found.st_mode & stat.S_IWOTH
            sticky = not inner and found.st_mode & stat.S_ISVTX
            if found.st_uid not in ours or (open_to_all and not sticky):
                return True
            if place == "/":
                break
            place, inner = os.path.dirname(place), False  # noqa: PTH120
    return False


def _has_acl(path: str) -> bool:
    """Whether an access control list may name other users; its mask shows as the group bits."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:  # ENODATA, or a file system without access control lists
        return False


def _begins_with_cwd() -> bool:
    """Whether this is `python -m` without -P or -I."""
    if sys.flags.safe_path or not sys.path:
        return False
    try:
        return sys.path[0] in {"", os.getcwd()}  # noqa: PTH109
    except OSError:  # the current folder was removed
        return sys.path[0] == ""


def _relative(variable: str) -> list[str]:
    """The relative entries of PYTHONPATH; the interpreter makes them absolute (site.py)."""
    entries = variable.split(os.pathsep) if variable else []
    return [entry for entry in entries if not os.path.isabs(entry)]  # noqa: PTH117
