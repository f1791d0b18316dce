# SPDX-License-Identifier: Apache-2.0
"""The one door to /proc, /sys and other kernel files: what is absent reads as None."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

# /proc/interrupts of a host with thousands of CPUs is the longest that has to be read whole.
LIMIT_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 1 << 16
_MOST_CPUS: Final = 1 << 16  # eight times what Linux can be built for (NR_CPUS, arch/x86/Kconfig)


@dataclass(frozen=True)
class HostFiles:
    """Kernel files below `root`; a test points it at a tree of its own.

    Paths are absolute ("/proc/cpuinfo"). Nothing here raises: a file that is missing,
    forbidden (lockdown, permissions) or failing on read is None or empty. Nothing is
    read without a limit: what some of these files say is up to any process's owner.
    """

    root: Path = Path("/")

    def text(self, path: str, limit_bytes: int = LIMIT_BYTES) -> str | None:
        """A file's text without surrounding white space, cut off at the limit, or None."""
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
        """A file that holds one decimal number, or None."""
        text = self.text(path)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def names(self, path: str) -> tuple[str, ...]:
        """The entries of a directory, sorted; () when it cannot be listed."""
        return self.listing(path) or ()

    def listing(self, path: str, most: int | None = None) -> tuple[str, ...] | None:
        """The entries of a directory, sorted, or None when it cannot be listed.

        `most` ends it after so many: the first that the kernel gives (descriptors and
        threads come in the order of their numbers).
        """
        try:
            with os.scandir(self._at(path)) as entries:
                return tuple(sorted(entry.name for entry in islice(entries, most)))
        except (OSError, ValueError):
            return None

    def link(self, path: str) -> str | None:
        """What a symbolic link says ("anon_inode:kvm-vm", "pid:[4026531836]"), or None."""
        try:
            return os.readlink(self._at(path))  # noqa: PTH115
        except (OSError, ValueError):
            return None

    def refusal(self, path: str) -> OSError | None:
        """Why a file cannot be opened and read, or a directory be listed; None where it can."""
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
        """Whether there is such a file, readable or not."""
        try:
            os.lstat(self._at(path))
        except (OSError, ValueError):
            return False
        return True

    def _at(self, path: str) -> str:
        # Plain strings, because every descriptor on the host goes through here:
        # pathlib takes three times as long.
        return f"{self.root}{path}"


HOST = HostFiles()


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format ("0-3,8,10-11") into sorted CPU numbers.

    "" and "(null)" (what /sys/devices/system/cpu/nohz_full says when unset) are no CPUs.
    Raises ValueError for anything else that is not a list, or has a CPU that none can have.
    """
    cpus: set[int] = set()
    if text.strip() in ("", "(null)"):
        return ()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        end = int(last if dash else first)
        if end >= _MOST_CPUS:
            raise ValueError(f"no host has a CPU {end}")
        cpus.update(range(int(first), end + 1))
    return tuple(sorted(cpus))


def _pieces(descriptor: int, limit_bytes: int) -> Iterator[bytes]:
    """What can be read, at most `limit_bytes`; raises OSError."""
    while limit_bytes > 0:
        piece = os.read(descriptor, min(limit_bytes, _CHUNK_BYTES))
        if not piece:
            return
        limit_bytes -= len(piece)
        yield piece
