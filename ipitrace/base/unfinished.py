# SPDX-License-Identifier: Apache-2.0
"""A recording that is being written beside its final path, and the leftovers of killed runs.

".NAME.partial-PID" is a recording that is being written. ".NAME.old-PID" is the former
recording NAME, renamed for a moment while another one replaces it.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from ipitrace.base.output import DirectoryEntry, create_file, hand_over, trusted_users, write_all

_NAME: Final = re.compile(r"\.(?P<name>.+)\.(?P<role>partial|old)-(?P<pid>\d{1,10})(?:-\d+)?")
_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unfinished:
    """A recording that is being written, in a directory that is held open.

    The writer holds a lock on one of its files (flock(2)) until it exits. remove_leftovers() can
    therefore distinguish it from a leftover of a killed run, also of a run in a container.
    """

    def __init__(self, place: DirectoryEntry, fd: int) -> None:
        self.place = place
        self._fd = fd
        self._locked_fd: int | None = None

    @property
    def path(self) -> Path:
        """A path of the directory that stays valid if the directory is renamed."""
        return Path(f"/proc/self/fd/{self._fd}")

    def begin(self, name: str, text: str) -> None:
        """Create the locked file with its first text."""
        self._locked_fd = self.create(name)
        with contextlib.suppress(OSError):  # no locks on this file system: nothing is removed there
            fcntl.flock(self._locked_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_all(self._locked_fd, text.encode())

    def rewrite(self, text: str) -> None:
        """Replace the text of the locked file."""
        if self._locked_fd is None:
            raise ValueError("rewrite() before begin()")
        os.ftruncate(self._locked_fd, 0)
        os.lseek(self._locked_fd, 0, os.SEEK_SET)
        write_all(self._locked_fd, text.encode())

    def create(self, name: str) -> int:
        """Create a file in the directory and return its descriptor."""
        return create_file(self._fd, name)

    def write(self, name: str, text: str) -> None:
        """Create a file with its complete content."""
        with os.fdopen(self.create(name), "wb") as file:
            file.write(text.encode())

    def hand_over(self) -> None:
        """Give the files to the caller of sudo, if the directory belongs to this user."""
        for name in os.listdir(self._fd):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                hand_over(fd, self.place.directory_fd)
            finally:
                os.close(fd)
        hand_over(self._fd, self.place.directory_fd)

    def remove(self) -> None:
        """Remove the directory and its files."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._fd):
                os.unlink(name, dir_fd=self._fd)
            os.rmdir(self.place.name, dir_fd=self.place.directory_fd)

    def close(self) -> None:
        """Close the directory and release the lock."""
        if self._locked_fd is not None:
            os.close(self._locked_fd)
        os.close(self._fd)


def remove_leftovers(
    place: DirectoryEntry, *, files: AbstractSet[str], run_file: str, seal: str
) -> None:
    """Remove the leftovers of killed runs in the directory of `place`.

    A leftover is removed if it is a directory of ours that contains only a recording's `files`,
    if its writer is dead, and if it is incomplete (has no `seal`) or was renamed and replaced by
    another complete recording. A directory that cannot be read or removed stays.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(place.path.parent):
            match = _NAME.fullmatch(name)
            if match is None or os.path.exists(f"/proc/{match['pid']}"):
                continue
            with contextlib.suppress(OSError), _entered(place.directory_fd, name) as fd:
                found = set(os.listdir(fd))
                if os.fstat(fd).st_uid not in trusted_users() or not found <= files:
                    continue
                if match["role"] == "old":
                    unwanted = _is_whole(place.directory_fd, match["name"], seal)
                else:
                    unwanted = seal not in found and _is_free(fd, run_file)
                if unwanted:
                    shutil.rmtree(name, ignore_errors=True, dir_fd=place.directory_fd)


@contextlib.contextmanager
def _entered(directory_fd: int, name: str) -> Iterator[int]:
    fd = os.open(name, _ENTER, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_whole(directory_fd: int, name: str, seal: str) -> bool:
    with contextlib.suppress(OSError), _entered(directory_fd, name) as fd:
        return seal in os.listdir(fd)
    return False


def _is_free(fd: int, run_file: str) -> bool:
    """Whether no writer holds the lock. A writer killed early has not created the file yet."""
    try:
        run_fd = os.open(run_file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        return not os.listdir(fd)
    try:
        fcntl.flock(run_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stat.S_ISREG(os.fstat(run_fd).st_mode)
    except BlockingIOError:
        return False
    finally:
        os.close(run_fd)
