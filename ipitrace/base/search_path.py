# SPDX-License-Identifier: Apache-2.0
"""Folders that programs and Python packages are taken from: none that others may write.

ipitrace runs as root, in whatever folder. What lies in that folder, or in another that
somebody else may write, must never become part of it.

Imports nothing but what the interpreter has loaded by itself: until clean() was called, an
import may find a file of the current folder.
"""

import os
import site
import stat
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - see above


def clean() -> None:
    """Have this process import nothing through folders that others may write.

    To be called before the first import of what is not ours. `python -m` puts the current
    folder first on the path; an empty or relative entry of PYTHONPATH has become it, too.
    What lies in ipitrace's own folder goes with it, wherever that is.
    """
    sys.path[:] = safe_entries(sys.path[1:] if _begins_with_cwd() else sys.path)


def safe_entries(entries: list[str]) -> list[str]:
    """Those of sys.path that are absolute and that nobody else may write.

    The interpreter's own folders stay, since whoever may write those has it already, and so
    does the one that ipitrace is in.
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
    """Whether anybody but root and ourselves could put something else at `path` or into it.

    Under sudo whoever called it is ourselves, too. A folder above may be sticky, as /tmp is;
    then nobody can rename what is ours in it. What does not exist, nobody can be trusted with.
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
            # A private group has its user's number (useradd's USERGROUPS_ENAB).
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
    """Whether an access control list may name others: its mask shows as the group's bits."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:  # ENODATA, or a file system without them
        return False


def _begins_with_cwd() -> bool:
    """Whether this is `python -m` without -P or -I."""
    if sys.flags.safe_path or not sys.path:
        return False
    try:
        return sys.path[0] in {"", os.getcwd()}  # noqa: PTH109
    except OSError:  # it was removed
        return sys.path[0] == ""


def _relative(variable: str) -> list[str]:
    """Relative entries of PYTHONPATH; the interpreter makes them absolute (site.py)."""
    entries = variable.split(os.pathsep) if variable else []
    return [entry for entry in entries if not os.path.isabs(entry)]  # noqa: PTH117
