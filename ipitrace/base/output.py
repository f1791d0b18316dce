# SPDX-License-Identifier: Apache-2.0
"""Create files and directories for the user: find the place, set the owner and the mode.

ipitrace runs as root, and may write where other users may write, for example in /tmp. The rules:

- A symbolic link is followed only if root or the user made it, or if no other user may write to
  its directory. Each part of a path is opened by itself, relative to the part before (openat,
  O_NOFOLLOW), so that no other user can replace a part during the lookup. The kernel has a
  similar check only for sticky directories, and only with fs.protected_symlinks
  (Documentation/admin-guide/sysctl/fs.rst).
- An existing file is replaced by a new file (O_EXCL) and a rename. A hard link that another user
  put there is therefore not written through.
- A new file belongs to the user who called sudo, if the directory belongs to this user.
- No other user may write to a new file, whatever the umask.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from ipitrace.base.errors import UsageError

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
_MODE_KEPT: Final = 0o664  # mode bits that a replaced file passes on
_OTHERS_WRITE: Final = 0o022
_MOST_LINKS: Final = 40  # MAXSYMLINKS of include/linux/namei.h
_NO_NAMES: Final = frozenset({"", "."})
_OPEN_ENTRY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_CREATE: Final = _WRITE | os.O_CREAT | os.O_EXCL


@dataclass
class Place:
    """A directory entry. The directory is held open, so a rename of the directory has no effect.

    A context manager; the directory is closed on exit.

    Attributes:
        directory_fd: the directory (O_PATH).
        name: the name of the entry, which need not exist.
        made: directories created on the path, each with the parent's descriptor.
        held: all open descriptors.
    """

    directory_fd: int
    name: str
    made: list[tuple[int, str]] = field(default_factory=list)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def path(self) -> Path:
        """A path of the entry that is valid while this object is open."""
        return Path(f"/proc/self/fd/{self.directory_fd}", self.name)

    @property
    def real(self) -> Path:
        """The path to print."""
        return Path(os.readlink(f"/proc/self/fd/{self.directory_fd}"), self.name)

    def status(self) -> os.stat_result | None:
        """The status of the entry, without following a link. None if there is no entry."""
        try:
            return os.stat(self.name, dir_fd=self.directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def entries(self) -> set[str]:
        """The names in the entry, which is a directory.

        Raises:
            OSError: it is not a directory, or cannot be read.
        """
        return set(os.listdir(self.path))

    def sibling(self, name: str) -> "Place":
        """Another entry of the same directory; this object owns the open directory."""
        return Place(self.directory_fd, name)

    def rename_to(self, other: "Place") -> None:
        """Rename this entry to `other`."""
        here, there = self.directory_fd, other.directory_fd
        os.rename(self.name, other.name, src_dir_fd=here, dst_dir_fd=there)

    def remove_made(self) -> None:
        """Remove the directories created on the path, if they are empty."""
        with contextlib.suppress(OSError):
            for parent_fd, name in reversed(self.made):
                os.rmdir(name, dir_fd=parent_fd)

    def close(self) -> None:
        """Close the directory."""
        self.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def person() -> tuple[int, int] | None:
    """User and group ids of the caller of sudo (sudo(8), SUDO_UID). None without sudo."""
    ids = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not all(text.isascii() and text.isdigit() for text in ids):
        return None
    return int(ids[0]), int(ids[1])


def trusted_users() -> set[int]:
    """Users that may redirect ipitrace's files: root, the effective user, the caller of sudo."""
    owner = person()
    return {0, os.geteuid(), *(owner[:1] if owner else ())}


def locate(path: Path, *, make_parents: bool = False) -> Place:
    """The directory entry that `path` names. A link at the end is followed if it is trusted.

    Raises:
        UsageError: a link on the path is not trusted.
        OSError: a directory on the path does not exist, or cannot be entered or created.
    """
    with contextlib.ExitStack() as held:
        walk = _Walk(path, held, make=make_parents)
        try:
            here, name = walk.to_the_end()
        except BaseException:
            Place(-1, "", walk.made).remove_made()
            raise
        return Place(here, name, walk.made, held.pop_all())


def create_directory(place: Place) -> int:
    """Create a directory and return a descriptor of it.

    Raises:
        OSError: it exists already, or cannot be created.
    """
    os.mkdir(place.name, DIRECTORY_MODE, dir_fd=place.directory_fd)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(place.name, flags, dir_fd=place.directory_fd)


def create_file(directory_fd: int, name: str) -> int:
    """Create a file in a directory that belongs to ipitrace; return a descriptor for writing.

    Raises:
        OSError: it exists already, or cannot be created.
    """
    return os.open(name, _CREATE, FILE_MODE, dir_fd=directory_fd)


def hand_over(fd: int, directory_fd: int) -> None:
    """Give a new file to the caller of sudo, if the directory belongs to this user.

    Raises:
        OSError: the file system refuses.
    """
    owner = person()
    if owner is not None and os.stat(directory_fd).st_uid == owner[0]:
        os.fchown(fd, *owner)


def replace_file(path: Path, text: str, *, readable: bool = False) -> None:
    """Replace the file atomically by a new one with `text`: a reader never sees a part of it.

    Devices, pipes, and files open in this process (/dev/stdout) are written to directly.

    Args:
        path: the file.
        text: the complete content.
        readable: make it readable by all users, whatever the umask.

    Raises:
        UsageError: a link or a pipe on the path is not trusted.
        OSError: it cannot be written. The existing file is kept, and no other file is left.
    """
    data = text.encode()
    with locate(path) as place:
        found = place.status()
        if found is not None and not stat.S_ISREG(found.st_mode):
            _write_into(place, found, data)
            return
        try:
            _write_new(place, data, found, readable=readable)
        except OSError as error:
            # Only the file may be writable, and not its directory; or the file is a mount point.
            if found is None or error.errno not in {errno.EACCES, errno.EPERM, errno.EBUSY}:
                raise
            _write_into(place, found, data)


def check_writable(path: Path) -> None:
    """Check that replace_file() can succeed unless the disk is full. Nothing is written.

    Raises:
        UsageError, OSError: see replace_file().
    """
    with locate(path) as place:
        found = place.status()
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        in_place = found is not None and os.access(place.path, os.W_OK)
        if not in_place and not os.access(place.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def append_file(path: Path, text: str) -> None:
    """Append `text` to a file, which is created if it does not exist.

    Raises:
        UsageError: the existing file is not trusted.
        OSError: it cannot be written.
    """
    data = text.encode()
    with locate(path) as place:
        found = place.status()
        if found is not None:
            _write_into(place, found, data, os.O_APPEND)
            return
        fd = create_file(place.directory_fd, place.name)
        try:
            hand_over(fd, place.directory_fd)
            write_all(fd, data)
        finally:
            os.close(fd)


class _Walk:
    """Walk along a path, one part at a time. All opened descriptors go to `held`."""

    def __init__(self, path: Path, held: contextlib.ExitStack, *, make: bool) -> None:
        self.made: list[tuple[int, str]] = []
        self._path = path
        self._held = held
        self._make = make
        self._parts = deque(os.fspath(path).split("/"))
        self._here = self._open("/" if path.is_absolute() else ".", _ENTER)
        self._n_links = 0

    def to_the_end(self) -> tuple[int, str]:
        """The directory, and the name of the entry in it."""
        while True:
            part = self._parts.popleft()
            last = all(name in _NO_NAMES for name in self._parts)
            if last and part in {*_NO_NAMES, ".."}:
                return self._itself(part or ".")
            if part not in _NO_NAMES and self._is_end(part, last=last):
                return self._here, part

    def _is_end(self, part: str, *, last: bool) -> bool:
        """Whether this is the wanted entry. If not, enter the directory or follow the link."""
        try:
            fd = self._open(part, _OPEN_ENTRY, self._here)
        except FileNotFoundError:
            if last or not self._make:
                if last:
                    return True
                raise
            _make_parent(self._here, part, self.made)
            self._parts.appendleft(part)
            return False
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):
            return self._follow(part, fd, found, last=last)
        if not last:
            self._here = self._open(".", _ENTER, fd)
        return last

    def _follow(self, part: str, fd: int, found: os.stat_result, *, last: bool) -> bool:
        self._n_links += 1
        if self._n_links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._path))
        _check_trusted(found, os.stat(self._here), self._path, "a symbolic link")
        if found.st_dev == os.stat("/proc").st_dev:
            # A link in /proc leads to an open file, not to the path that its text names.
            if not last:
                self._here = self._open(part, _ENTER, self._here)
            return last
        text = os.readlink("", dir_fd=fd)  # readlinkat(2) with an empty path: fd itself
        self._parts.extendleft(reversed(text.split("/")))
        if text.startswith("/"):
            self._here = self._open("/", _ENTER)
        return False

    def _itself(self, part: str) -> tuple[int, str]:
        """This directory, or its parent, as an entry of the directory above it."""
        inside = self._open(part, _ENTER, self._here)
        name = Path(os.readlink(f"/proc/self/fd/{inside}")).name
        return self._open("..", _ENTER, inside), name or "."

    def _open(self, name: str, flags: int, dir_fd: int | None = None) -> int:
        fd = os.open(name, flags, dir_fd=dir_fd)
        self._held.callback(os.close, fd)
        return fd


def _make_parent(here: int, name: str, made: list[tuple[int, str]]) -> None:
    try:
        fd = create_directory(Place(here, name))
    except FileExistsError:
        return  # another process created it first
    try:
        made.append((here, name))
        if os.fstat(fd).st_uid == os.geteuid() and not os.listdir(fd):  # it is still ours
            hand_over(fd, here)
    finally:
        os.close(fd)


def _check_trusted(found: os.stat_result, directory: os.stat_result, path: Path, what: str) -> None:
    trusted = trusted_users()
    if found.st_uid in trusted and found.st_nlink == 1:
        return
    if _only_written_by(directory, trusted):
        return
    raise UsageError(
        f"{path} leads to {what} of user {found.st_uid} in a directory that others may write to.",
        "Choose another path.",
    )


def _only_written_by(directory: os.stat_result, trusted: set[int]) -> bool:
    return directory.st_uid in trusted and not directory.st_mode & _OTHERS_WRITE


def _write_new(place: Place, data: bytes, former: os.stat_result | None, *, readable: bool) -> None:
    new = place.sibling(f".ipitrace-{secrets.token_hex(8)}")
    fd = create_file(new.directory_fd, new.name)
    try:
        try:
            if readable:
                os.fchmod(fd, FILE_MODE)
            elif former is not None:
                os.fchmod(fd, stat.S_IMODE(former.st_mode) & _MODE_KEPT)
            hand_over(fd, new.directory_fd)
            write_all(fd, data)
        finally:
            os.close(fd)
        new.rename_to(place)
    except BaseException:
        os.unlink(new.name, dir_fd=new.directory_fd)
        raise


def _write_into(place: Place, found: os.stat_result, data: bytes, flags: int = 0) -> None:
    """Write to the existing file itself."""
    with _opened(place, found, flags) as fd:
        now = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and not os.path.samestat(now, found):
            raise OSError(errno.ESTALE, "another process replaced it", str(place.real))
        if stat.S_ISREG(now.st_mode) and not stat.S_ISLNK(found.st_mode):
            if now.st_nlink > 1:
                _check_trusted(now, os.stat(place.directory_fd), place.real, "a hard link")
            if not flags & os.O_APPEND:
                os.ftruncate(fd, 0)
        write_all(fd, data)


@contextlib.contextmanager
def _opened(place: Place, found: os.stat_result, flags: int) -> Iterator[int]:
    if stat.S_ISLNK(found.st_mode):  # a link in /proc; locate() has followed any other
        if place.real.parent == Path(f"/proc/{os.getpid()}/fd"):
            fd = os.dup(int(place.name))  # shares the file offset
        else:
            fd = os.open(place.name, (_WRITE & ~os.O_NOFOLLOW) | flags, dir_fd=place.directory_fd)
    else:
        if not stat.S_ISREG(found.st_mode):
            _check_trusted(found, os.stat(place.directory_fd), place.real, "a pipe or device")
        # If the file was replaced by a pipe since, opening must not wait for the pipe's reader.
        nonblocking = os.O_NONBLOCK if stat.S_ISREG(found.st_mode) else 0
        fd = os.open(place.name, _WRITE | flags | nonblocking, dir_fd=place.directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, also if the kernel accepts only a part at a time.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
