# SPDX-License-Identifier: Apache-2.0
"""Compiled BPF programs: those of an earlier run from the cache, others by bcc."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from ipitrace.base.loading import load
from ipitrace.base.signals import signals_deferred
from ipitrace.tracer import bcc_compile, bpf_object
from ipitrace.tracer.bcc_compile import compile_with_bcc
from ipitrace.tracer.bpf_object import BpfObject, BpfObjectError
from ipitrace.tracer.cache import keep, kept, key_of
from ipitrace.tracer.loading import Bpf

# A different version of one of these may compile differently.
_COMPILERS: Final = ("libbcc", "libclang", "libLLVM", "libbpf")


@dataclass(frozen=True)
class Library:
    """A file of the compiler. An update replaces it, so that its size or time changes."""

    path: str
    n_bytes: int
    changed_ns: int


@dataclass(frozen=True)
class Compiled:
    """An entry of the cache."""

    compiler: tuple[Library, ...]
    made: BpfObject


@signals_deferred()
def compile_programs(
    text: str, flags: list[str], directory: Path, entries: Mapping[str, int] | None = None
) -> Bpf:
    """Compile `text`, or take the result of an earlier compilation, and create the maps.

    Nothing is loaded or attached. The headers are in `directory`.
    `entries` are the numbers of entries of the named maps, if they differ from the text's: the
    result of a compilation does not depend on them. Raises HostError. bcc changes the working
    directory during compilation.
    """
    return Bpf(_compiled(text, flags, directory), entries)


def _compiled(text: str, flags: list[str], directory: Path) -> BpfObject:
    system = os.uname()
    code = (bcc_compile.__file__, bpf_object.__file__)
    key = key_of(code, text, flags, _headers(directory), system.release, system.version)
    known = _known(key)
    if known is not None:
        return known
    made = compile_with_bcc(text, flags, directory)
    compiler = _libraries()
    if compiler:
        keep(key, asdict(Compiled(compiler, made)))
    return made


def _known(key: str) -> BpfObject | None:
    """The result of an earlier compilation with the same compiler."""
    value = kept(key)
    if value is None:
        return None
    try:
        found = load(Compiled, value)
        if not all(_library(one.path) == one for one in found.compiler):
            return None
        found.made.check()
    except (ValueError, BpfObjectError):
        return None
    return found.made


def _headers(directory: Path) -> list[tuple[str, str]]:
    """The relative path and a digest of every header."""
    return [
        (str(path.relative_to(directory)), sha256(path.read_bytes()).hexdigest())
        for path in sorted(directory.rglob("*.h"))
    ]


def _libraries() -> tuple[Library, ...]:
    """The compiler's libraries in this process; () if they cannot be found."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    paths = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) > 5}  # noqa: PLR2004
    ours = sorted(path for path in paths if Path(path).name.startswith(_COMPILERS))
    found = tuple(one for path in ours if (one := _library(path)) is not None)
    complete = len(found) == len(ours) and any("libbcc" in one.path for one in found)
    return found if complete else ()


def _library(path: str) -> Library | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return Library(path, status.st_size, status.st_mtime_ns)
