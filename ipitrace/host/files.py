# SPDX-License-Identifier: Apache-2.0
"""The one door to /proc, /sys and other kernel files: what is absent reads as None."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostFiles:
    """Kernel files below `root`; a test points it at a tree of its own.

    Paths are absolute ("/proc/cpuinfo"). Nothing here raises: a file that is missing,
    forbidden (lockdown, permissions) or failing on read is None or empty.
    """

    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """A file's text without surrounding white space, or None."""
        try:
            return Path(self._at(path)).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

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

    def listing(self, path: str) -> tuple[str, ...] | None:
        """The entries of a directory, sorted, or None when it cannot be listed."""
        try:
            return tuple(sorted(os.listdir(self._at(path))))  # noqa: PTH208
        except OSError:
            return None

    def link(self, path: str) -> str | None:
        """What a symbolic link says ("anon_inode:kvm-vm", "pid:[4026531836]"), or None."""
        try:
            return os.readlink(self._at(path))  # noqa: PTH115
        except OSError:
            return None

    def _at(self, path: str) -> str:
        # Plain strings, because every descriptor on the host goes through here:
        # pathlib takes three times as long.
        return f"{self.root}{path}"


HOST = HostFiles()


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format ("0-3,8,10-11") into sorted CPU numbers.

    "" and "(null)" (what /sys/devices/system/cpu/nohz_full says when unset) are no CPUs.
    Raises ValueError for anything else that is not a list.
    """
    cpus: set[int] = set()
    if text.strip() in ("", "(null)"):
        return ()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(cpus))
