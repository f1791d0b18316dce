# SPDX-License-Identifier: Apache-2.0
"""Every file and directory that ipitrace makes for a person: where it goes, and whose it is.

ipitrace runs as root where others may write, in /tmp for instance. So:

- A symbolic link is followed only if root or the person made it, or nobody else could have
  put it there. Each part of a path is opened by itself, relative to the one before (openat,
  O_NOFOLLOW), so that nobody can swap one meanwhile. The kernel does as much by itself in
  sticky directories alone, and only with fs.protected_symlinks
  (Documentation/admin-guide/sysctl/fs.rst).
- What is there is replaced by a new file (O_EXCL) and a rename: a hard link that somebody put
  in its place is not written through.
- What is made belongs to the person whom sudo started us for, where the directory is theirs.
- Nobody else may write to it, whatever the umask.
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
_MODE_KEPT: Final = 0o664  # of a file that is replaced
_OTHERS_WRITE: Final = 0o022
_MOST_LINKS: Final = 40  # MAXSYMLINKS of include/linux/namei.h
_NOWHERE: Final = frozenset({"", "."})
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_CREATE: Final = _WRITE | os.O_CREAT | os.O_EXCL


@dataclass
class DirectoryEntry:
    """An entry of a directory that is held open: it stays the same one, whoever renames what.

    A context manager, after which it is closed.

    Attributes:
        directory_fd: the directory (O_PATH).
        name: the entry's; there need be none of it.
        made: directories made on the way there, each with its parent's descriptor.
        held: all that is open.
    """

    directory_fd: int
    name: str
    made: list[tuple[int, str]] = field(default_factory=list)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def path(self) -> Path:
        """A path of it that holds while this is open."""
        return Path(f"/proc/self/fd/{self.directory_fd}", self.name)

    @property
    def real(self) -> Path:
        """A path for a person to read."""
        return Path(os.readlink(f"/proc/self/fd/{self.directory_fd}"), self.name)

    def status(self) -> os.stat_result | None:
        """Of what is there, a link not followed; None where nothing is."""
        try:
            return os.stat(self.name, dir_fd=self.directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def entries(self) -> set[str]:
        """The names in it, where it is a directory.

        Raises:
            OSError: it is none, or cannot be read.
        """
        return set(os.listdir(self.path))

    def sibling(self, name: str) -> "DirectoryEntry":
        """Another entry of the same directory, which this one keeps open."""
        return DirectoryEntry(self.directory_fd, name)

    def rename_to(self, other: "DirectoryEntry") -> None:
        """Move what is here there."""
        here, there = self.directory_fd, other.directory_fd
        os.rename(self.name, other.name, src_dir_fd=here, dst_dir_fd=there)

    def remove_made(self) -> None:
        """Remove the directories made on the way here, as far as they are empty."""
        with contextlib.suppress(OSError):
            for parent_fd, name in reversed(self.made):
                os.rmdir(name, dir_fd=parent_fd)

    def close(self) -> None:
        """Let go of the directory."""
        self.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def person() -> tuple[int, int] | None:
    """User and group whom sudo started us for (sudo(8), SUDO_UID); None without sudo."""
    ids = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not all(text.isascii() and text.isdigit() for text in ids):
        return None
    return int(ids[0]), int(ids[1])


def trusted_users() -> set[int]:
    """Those who may decide where our files go: root, we, and the person behind sudo."""
    owner = person()
    return {0, os.geteuid(), *(owner[:1] if owner else ())}


def locate(path: Path, *, make_parents: bool = False) -> DirectoryEntry:
    """The place that `path` means; a link that ends it is followed, if it may be.

    Raises:
        UsageError: a link on the way is not to be trusted.
        OSError: a directory on the way is not there, or cannot be entered or made.
    """
    with contextlib.ExitStack() as held:
        walk = _Walk(path, held, make=make_parents)
        try:
            here, name = walk.to_the_end()
        except BaseException:
            DirectoryEntry(-1, "", walk.made).remove_made()
            raise
        return DirectoryEntry(here, name, walk.made, held.pop_all())


def create_directory(place: DirectoryEntry) -> int:
    """Make a directory, and answer a descriptor of it.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    os.mkdir(place.name, DIRECTORY_MODE, dir_fd=place.directory_fd)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(place.name, flags, dir_fd=place.directory_fd)


def create_file(directory_fd: int, name: str) -> int:
    """Make a file of ours in a directory of ours, and answer a descriptor to write to it.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    return os.open(name, _CREATE, FILE_MODE, dir_fd=directory_fd)


def hand_over(fd: int, directory_fd: int) -> None:
    """Give what we just made in the directory to the person, if the directory is theirs.

    Raises:
        OSError: the file system refuses.
    """
    owner = person()
    if owner is not None and os.stat(directory_fd).st_uid == owner[0]:
        os.fchown(fd, *owner)


def replace_file(path: Path, text: str, *, readable: bool = False) -> None:
    """Put a new file with `text` into the place at once: no reader ever sees half of it.

    Devices, pipes, and what one of our own descriptors is (/dev/stdout), are written to.

    Args:
        path: the place.
        text: all of the file.
        readable: by everybody, whatever the umask.

    Raises:
        UsageError: a link or a pipe there is not to be trusted.
        OSError: it cannot be written; what was there is there still, and nothing else is.
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
            # Its directory may be closed to us and the file itself not; or it is a mount.
            if found is None or error.errno not in {errno.EACCES, errno.EPERM, errno.EBUSY}:
                raise
            _write_into(place, found, data)


def check_writable(path: Path) -> None:
    """See that replace_file() has a chance, short of a full disk; nothing is written.

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
    """Add `text` to the end of a file, which is made if it is not there.

    Raises:
        UsageError: what is there is not to be trusted.
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
    """The way along a path, a part at a time; all that is opened goes to `held`."""

    def __init__(self, path: Path, held: contextlib.ExitStack, *, make: bool) -> None:
        self.made: list[tuple[int, str]] = []
        self._path = path
        self._held = held
        self._make = make
        self._parts = deque(os.fspath(path).split("/"))
        self._here = self._open("/" if path.is_absolute() else ".", _ENTER)
        self._n_links = 0

    def to_the_end(self) -> tuple[int, str]:
        """The directory, and the name in it."""
        while True:
            part = self._parts.popleft()
            last = all(rest in _NOWHERE for rest in self._parts)
            if last and part in {*_NOWHERE, ".."}:
                return self._itself(part or ".")
            if part not in _NOWHERE and self._is_end(part, last=last):
                return self._here, part

    def _is_end(self, part: str, *, last: bool) -> bool:
        """Whether this is the entry that is meant; else go on into it, or where it leads."""
        try:
            fd = self._open(part, _LOOK, self._here)
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
            # It leads to what is open somewhere, not where its text says.
            if not last:
                self._here = self._open(part, _ENTER, self._here)
            return last
        text = os.readlink("", dir_fd=fd)  # readlinkat(2): of fd itself
        self._parts.extendleft(reversed(text.split("/")))
        if text.startswith("/"):
            self._here = self._open("/", _ENTER)
        return False

    def _itself(self, part: str) -> tuple[int, str]:
        """This directory, or the one above it, as an entry of the one above that."""
        inside = self._open(part, _ENTER, self._here)
        name = Path(os.readlink(f"/proc/self/fd/{inside}")).name
        return self._open("..", _ENTER, inside), name or "."

    def _open(self, name: str, flags: int, dir_fd: int | None = None) -> int:
        fd = os.open(name, flags, dir_fd=dir_fd)
        self._held.callback(os.close, fd)
        return fd


def _make_parent(here: int, name: str, made: list[tuple[int, str]]) -> None:
    try:
        fd = create_directory(DirectoryEntry(here, name))
    except FileExistsError:
        return  # somebody was faster
    try:
        made.append((here, name))
        if os.fstat(fd).st_uid == os.geteuid() and not os.listdir(fd):  # still what we made
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
        "Choose another place.",
    )


def _only_written_by(directory: os.stat_result, trusted: set[int]) -> bool:
    return directory.st_uid in trusted and not directory.st_mode & _OTHERS_WRITE


def _write_new(
    place: DirectoryEntry, data: bytes, former: os.stat_result | None, *, readable: bool
) -> None:
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


def _write_into(place: DirectoryEntry, found: os.stat_result, data: bytes, flags: int = 0) -> None:
    """Write to what is there itself."""
    with _opened(place, found, flags) as fd:
        now = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and not os.path.samestat(now, found):
            raise OSError(errno.ESTALE, "somebody replaced it meanwhile", str(place.real))
        if stat.S_ISREG(now.st_mode) and not stat.S_ISLNK(found.st_mode):
            if now.st_nlink > 1:
                _check_trusted(now, os.stat(place.directory_fd), place.real, "a hard link")
            if not flags & os.O_APPEND:
                os.ftruncate(fd, 0)
        write_all(fd, data)


@contextlib.contextmanager
def _opened(place: DirectoryEntry, found: os.stat_result, flags: int) -> Iterator[int]:
    if stat.S_ISLNK(found.st_mode):  # of /proc, or locate() would have followed it
        if place.real.parent == Path(f"/proc/{os.getpid()}/fd"):
            fd = os.dup(int(place.name))  # with its offset
        else:
            fd = os.open(place.name, (_WRITE & ~os.O_NOFOLLOW) | flags, dir_fd=place.directory_fd)
    else:
        if not stat.S_ISREG(found.st_mode):
            _check_trusted(found, os.stat(place.directory_fd), place.real, "a pipe or device")
        # What was a file and is a pipe now must not keep us waiting for its reader.
        patience = os.O_NONBLOCK if stat.S_ISREG(found.st_mode) else 0
        fd = os.open(place.name, _WRITE | flags | patience, dir_fd=place.directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however little the kernel takes at a time.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
