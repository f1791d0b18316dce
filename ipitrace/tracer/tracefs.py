# SPDX-License-Identifier: Apache-2.0
"""Find tracefs and debugfs; mount them in a private namespace if they are not mounted."""

import ctypes
import os
from pathlib import Path
from typing import Final

MOUNT_POINTS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
DEBUGFS: Final = Path("/sys/kernel/debug")
SECURITYFS: Final = Path("/sys/kernel/security")

_CLONE_NEWNS: Final = 0x00020000  # include/uapi/linux/sched.h
_MS_REC: Final = 0x4000  # include/uapi/linux/mount.h
_MS_SLAVE: Final = 1 << 19


def find_tracefs(mount_points: tuple[Path, ...] = MOUNT_POINTS) -> Path | None:
    """The mounted tracefs, or None."""
    for path in mount_points:
        try:
            if (path / "events").is_dir():
                return path
        except OSError:
            continue
    return None


def _check(result: int, action: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{action}: {os.strerror(error)}")


def mount_privately(mount_point: Path = MOUNT_POINTS[0], kind: str = "tracefs") -> Path:
    """Enter a new mount namespace and mount `kind` in it; returns the mount point.

    The mount is not visible outside, and it is removed when the process ends in any way. Later
    mounts on the host are still visible here (MS_SLAVE). Linux applies the new namespace to the
    calling thread and to threads and processes that it starts afterwards: call this in the main
    thread, before it starts others that need tracefs. Raises OSError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_NEWNS), "unshare")
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount --make-rslave /")
    target = os.fsencode(mount_point)
    _check(libc.mount(kind.encode(), target, kind.encode(), 0, None), f"mount {mount_point}")
    return mount_point


def ensure_tracefs() -> tuple[Path | None, str | None]:
    """The mounted tracefs, mounted privately if necessary; or None and the reason."""
    found = find_tracefs()
    if found is not None:
        return found, None
    why = _ensure(MOUNT_POINTS[0], "tracefs")
    return (MOUNT_POINTS[0], None) if why is None else (None, why)


def ensure_debugfs() -> str | None:
    """Mount debugfs privately if it is not mounted. Returns None, or why it cannot be read."""
    return _ensure(DEBUGFS, "debugfs")


def ensure_securityfs() -> str | None:
    """Likewise for securityfs."""
    return _ensure(SECURITYFS, "securityfs")


def _ensure(mount_point: Path, kind: str) -> str | None:
    try:
        if any(mount_point.iterdir()):
            return None
    except OSError as error:  # mounted, but only readable by its owner, which is the default
        return f"{kind} cannot be read ({error.strerror})"
    try:
        mount_privately(mount_point, kind)
    except OSError as error:
        how = f"mount it with: mount -t {kind} {kind} {mount_point}"
        return f"{kind} is not mounted and cannot be ({error.strerror}); {how}"
    return None
