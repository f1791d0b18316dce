# SPDX-License-Identifier: Apache-2.0
"""Inputs as files, and what an error may look like."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ipitrace.base.errors import IpitraceError
from ipitrace.host.files import HostFiles

_LONGEST_MESSAGE = 2_000


@functools.cache
def folder() -> Path:
    """One of this process's own; the supervisor removes it with what else was in its TMPDIR."""
    made = Path(tempfile.mkdtemp(prefix="ipitrace-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def place(name: str, data: bytes) -> Path:
    """`data` as a file of that name."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree(contents: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> HostFiles:
    """Kernel files, path to content; the same paths in every call of one process."""
    root = folder() / "tree"
    for path, content in contents.items():
        place(f"tree{path}", content)
    for path, target in (links or {}).items():
        at = root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        if not at.is_symlink():
            at.symlink_to(target)
    return HostFiles(root)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """An error that passes must be one line, of a length that people read."""
    try:
        yield
    except IpitraceError as error:
        length = len(error.message) + len(error.hint)
        if not error.message or length > _LONGEST_MESSAGE or "\n" in error.message:
            raise AssertionError(f"an error of {length} characters") from error
        raise
