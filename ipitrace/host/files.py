# SPDX-License-Identifier: Apache-2.0
"""Access to /proc, /sys and other kernel files; a missing file reads as None."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Final

# The longest file that has to be read completely: /proc/interrupts of thousands of CPUs.
LIMIT_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 1 << 16
_NAME: Final = attrgetter("name")
_MOST_CPUS: Final = 1 << 16  # eight times what Linux can be built for (NR_CPUS, arch/x86/Kconfig)


@dataclass(frozen=True)
class HostFiles:
    """Kernel files below `root`, which is another directory in tests.

    Paths are absolute ("/proc/cpuinfo"). No method raises: the result is None or empty for a
    file that is missing, forbidden (lockdown, permissions) or fails on read. Every read has a
    limit, because the owner of a process controls the content of some of these files.
    """

    root: Path = Path("/")

    def text(self, path: str, limit_bytes: int = LIMIT_BYTES) -> str | None:
        """A file's text without surrounding white space, cut at the limit, or None."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        try:
            return b"".join(_pieces(descriptor, limit_bytes)).decode(errors="replace").strip()
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def number(self, path: str) -> int | None:
        """The decimal number that a file contains, or None."""
        text = self.text(path)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def names(self, path: str) -> tuple[str, ...]:
        """The entries of a directory, sorted; () if it cannot be listed."""
        return self.listing(path) or ()

    def listing(self, path: str, most: int | None = None) -> tuple[str, ...] | None:
        """The entries of a directory, sorted, or None if it cannot be listed.

        `most` limits the number of entries to the first that the kernel returns (descriptors and
        threads are returned in numerical order).
        """
        try:
            with os.scandir(self._at(path)) as entries:
                return tuple(sorted(map(_NAME, islice(entries, most))))
        except (OSError, ValueError):
            return None

    def link(self, path: str) -> str | None:
        """The text of a symbolic link ("anon_inode:kvm-vm", "pid:[4026531836]"), or None."""
        try:
            return os.readlink(self._at(path))  # noqa: PTH115
        except (OSError, ValueError):
            return None

    def refusal(self, path: str) -> OSError | None:
        """Why a file cannot be read or a directory cannot be listed; None if it can."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.read(descriptor, 1)
            finally:
                os.close(descriptor)
        except IsADirectoryError:
            try:
                with os.scandir(self._at(path)) as entries:
                    next(entries, None)
            except OSError as error:
                return error
        except OSError as error:
            return error
        return None

    def exists(self, path: str) -> bool:
        """Whether the file exists, readable or not."""
        try:
            os.lstat(self._at(path))
        except (OSError, ValueError):
            return False
        return True

    def _at(self, path: str) -> str:
        # Plain strings, because this function is called for every descriptor on the host:
        # pathlib takes three times as long.
        return f"{self.root}{path}"


HOST = HostFiles()


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse the kernel's list format ("0-3,8,10-11") into sorted CPU numbers.

    "" and "(null)" (the text of an unset /sys/devices/system/cpu/nohz_full) are no CPUs.
    Raises ValueError for any other text that is not a list, and for an impossible CPU number.
    """
    cpus: set[int] = set()
    if text.strip() in ("", "(null)"):
        return ()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        end = int(last if dash else first)
        if end >= _MOST_CPUS:
            raise ValueError(f"the CPU number {end} is out of range")
        cpus.update(range(int(first), end + 1))
    return tuple(sorted(cpus))


def _pieces(descriptor: int, limit_bytes: int) -> Iterator[bytes]:
    """Read at most `limit_bytes` in pieces; raises OSError."""
    while limit_bytes > 0:
        piece = os.read(descriptor, min(limit_bytes, _CHUNK_BYTES))
        if not piece:
            return
        limit_bytes -= len(piece)
        yield piece
