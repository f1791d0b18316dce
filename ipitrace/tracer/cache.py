# SPDX-License-Identifier: Apache-2.0
"""Results that are expensive to compute, kept in the user's cache folder.

Root reads the entries, and the kernel loads what they contain. The folder is therefore used only
if no other user can have written to it, and nobody else could have replaced it: it and every
directory above it belong to root or to the effective user, and no other user may write to them.
Each directory is opened relative to the one above it, without following links. An entry that is
not as it was written counts as absent. No function raises: a cache that cannot be used costs time,
and nothing else.
"""

import contextlib
import hashlib
import json
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from ipitrace.base.output import create_file, write_all
from ipitrace.base.units import MIB
from ipitrace.base.untrusted import parse_json

_FORMAT: Final = 1
_FOLDER: Final = "ipitrace"
_ENTRY: Final = re.compile(r"[0-9a-f]{64}\.json")
_PART: Final = re.compile(r"\.part-[0-9a-f]{16}")
_MOST_ENTRIES: Final = 24
_MOST_BYTES: Final = 4 * MIB
_PART_LIVES_S: Final = 3600.0
_OTHERS_WRITE: Final = 0o022
_OTHERS_ANYTHING: Final = 0o077
_PRIVATE: Final = 0o700
_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class CacheError(Exception):
    """The folder cannot be used; the text is the reason."""


def key_of(code: Collection[str], *parts: object) -> str:
    """The key of a result that these Python files compute from `parts`, which are JSON values.

    If a file cannot be read, no other result has the key.
    """
    try:
        digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in code]
    except OSError:
        digests = [secrets.token_hex()]
    text = json.dumps([_FORMAT, digests, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kept(key: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value that keep() stored under this key; None if there is none that is intact."""
    try:
        with _folder(make=False) as folder:
            return _value(_content(folder, f"{key}.json"), key)
    except (CacheError, OSError, ValueError):
        return None


def keep(key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Store a value that JSON can represent, if possible; remove the oldest of too many."""
    body = json.dumps({"key": key, "value": value}).encode()
    content = _checksum(body) + b"\n" + body
    if len(content) > _MOST_BYTES:
        return
    with contextlib.suppress(CacheError, OSError), _folder(make=True) as folder:
        part = f".part-{secrets.token_hex(8)}"
        fd = create_file(folder, part)
        try:
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
            os.rename(part, f"{key}.json", src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(part, dir_fd=folder)
            raise
        _prune(folder)


def cache_state() -> str:
    """A description of the cache for people: where it is, or why it is not used."""
    try:
        with _folder(make=False) as folder:
            return f"cached in {_path(folder)}"
    except FileNotFoundError:
        return "not cached yet"
    except CacheError as error:
        return f"not cached: {error}"
    except OSError as error:
        return f"not cached: {error.strerror}"


@contextlib.contextmanager
def _folder(*, make: bool) -> Iterator[int]:
    """The open folder. Raises CacheError or OSError."""
    base = _base()
    with contextlib.ExitStack() as held:
        here = _entered(None, "/", held)
        for part in base.parent.parts[1:]:
            here = _entered(here, part, held)
        for part in (base.name, _FOLDER):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, _PRIVATE, dir_fd=here)
            here = _entered(here, part, held)
        found = os.fstat(here)
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_ANYTHING:
            raise CacheError(f"{base / _FOLDER} is not a private folder of this user (mode 0700)")
        yield here


def _entered(parent: int | None, name: str, held: contextlib.ExitStack) -> int:
    fd = os.open(name, _ENTER, dir_fd=parent)
    held.callback(os.close, fd)
    found = os.fstat(fd)
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & _OTHERS_WRITE:
        path = _path(fd)
        raise CacheError(f"another user may write to {path}, or owns it")
    return fd


def _path(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _base() -> Path:
    """The folder for caches of all programs (XDG Base Directory Specification).

    The home is that of the effective user: under sudo, HOME may be another user's.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if named.startswith("/") and "\0" not in named:
        with contextlib.suppress(OSError):
            if Path(named).stat().st_uid == os.geteuid():
                return Path(os.path.realpath(named))
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError as error:
        raise CacheError("this user has no home") from error
    if not home.startswith("/"):
        raise CacheError("this user has no home")
    return Path(os.path.realpath(home)) / ".cache"


def _content(folder: int, name: str) -> bytes:
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        found = os.fstat(fd)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid != os.geteuid()
            or found.st_nlink > 1  # 0: it was just replaced
            or found.st_mode & _OTHERS_WRITE
            or found.st_size > _MOST_BYTES
        ):
            raise CacheError(f"{name} is not a file of this cache")
        with contextlib.suppress(OSError):
            os.utime(fd)  # the time of the last use; _prune() keeps the latest
        with os.fdopen(os.dup(fd), "rb") as file:
            content: bytes = file.read(_MOST_BYTES + 1)
    finally:
        os.close(fd)
    return content


def _value(content: bytes, key: str) -> Any:  # noqa: ANN401 - any JSON value
    """Raises ValueError if the content is not what keep() wrote."""
    checksum, _, body = content.partition(b"\n")
    if checksum != _checksum(body):
        raise ValueError("the checksum is wrong")
    document = parse_json(body, longest_text=_MOST_BYTES)
    if not isinstance(document, dict) or document.get("key") != key:
        raise ValueError("it is another entry")
    return document.get("value")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _prune(folder: int) -> None:
    """Remove the entries that were not used for longest, and leftovers of killed processes."""
    ages: list[tuple[float, str]] = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            used_s = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            if _ENTRY.fullmatch(name):
                ages.append((used_s, name))
            elif _PART.fullmatch(name) and used_s < time.time() - _PART_LIVES_S:
                os.unlink(name, dir_fd=folder)
    for _, name in sorted(ages)[:-_MOST_ENTRIES]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
