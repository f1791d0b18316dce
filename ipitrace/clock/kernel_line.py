# SPDX-License-Identifier: Apache-2.0
"""The line by which the kernel itself computes CLOCK_MONOTONIC from the TSC.

The kernel publishes it for the vDSO's clock_gettime(), in a page that is mapped into every
process, and computes the stamps of BPF programs (bpf_ktime_get_ns()) by the same line:

    ns = seconds * 10^9 + (((tsc - cycle_last) * mult + shifted_ns) >> shift)

The page's layout is not an interface, and has changed (include/vdso/datapage.h). It is therefore
searched for values that have the meaning of this line, and a line is used for a reading only if
it agrees with a sandwich, which needs no knowledge of the page.
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipitrace.base.units import NS_PER_S

_MAPPING: Final = "[vvar]"
_SEARCHED: Final = (
    1024  # bytes of the page; the line has been in its first 512 bytes since Linux 5.6
)
_MODE_TSC: Final = 1  # VDSO_CLOCKMODE_TSC, arch/x86/include/asm/vdso/clocksource.h
_MASK: Final = b"\xff" * 8  # of the clocksource tsc
_BEFORE_MASK: Final = struct.Struct("<IIQ")  # sequence count, mode, cycle_last
# mult, shift, the base of CLOCK_REALTIME, that of CLOCK_MONOTONIC: seconds, and ns shifted left
_AFTER_MASK: Final = struct.Struct("<8xII16xQQ")
_MOST_SHIFT: Final = 32
_WORD: Final = 8
_ATTEMPTS: Final = 8


@dataclass(frozen=True)
class KernelLine:
    """CLOCK_MONOTONIC as a line of the host's TSC."""

    cycle_last: int
    mult: int
    shift: int
    seconds: int
    shifted_ns: int

    def first_tsc(self, ts_ns: int) -> int:
        """The first TSC value at which CLOCK_MONOTONIC reads `ts_ns`."""
        beyond = ((ts_ns - self.seconds * NS_PER_S) << self.shift) - self.shifted_ns
        return self.cycle_last - (-beyond // self.mult)


class KernelLines:
    """Reads the line from this process's copy of the page."""

    def __init__(self, address: int) -> None:
        """`address` is that of the page; see find_kernel_lines()."""
        self._address = address

    def read(self) -> tuple[KernelLine, ...]:
        """What may be the line now, in order of place; () if the clock is not the TSC."""
        for _ in range(_ATTEMPTS):
            page = ctypes.string_at(self._address, _SEARCHED)
            if page == ctypes.string_at(self._address, _SEARCHED):  # no update in between
                return tuple(_lines(page))
        return ()


def _lines(page: bytes) -> Iterator[KernelLine]:
    """Every place whose values can be a line: a sequence count, the mode TSC, and so on."""
    at = page.find(_MASK)
    while 0 <= at <= len(page) - _AFTER_MASK.size:
        mult, shift, seconds, shifted_ns = _AFTER_MASK.unpack_from(page, at)
        # max_cycles is between cycle_last and the mask in kernels that have it.
        for start in (at - 2 * _WORD, at - 3 * _WORD):
            if start < 0:
                continue
            sequence, mode, cycle_last = _BEFORE_MASK.unpack_from(page, start)
            if mode == _MODE_TSC and not sequence & 1 and mult and shift <= _MOST_SHIFT:
                yield KernelLine(cycle_last, mult, shift, seconds, shifted_ns)
        at = page.find(_MASK, at + 1)


def find_kernel_lines(maps: Path = Path("/proc/self/maps")) -> KernelLines | None:
    """The reader of this process's page; None if the kernel maps none that can be read."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.endswith(_MAPPING):
            address = int(line.partition("-")[0], 16)
            return KernelLines(address) if _readable(address) else None
    return None


def _readable(address: int) -> bool:
    """Let the kernel read the page first: it returns an error where a load would be a signal."""
    libc = ctypes.CDLL(None, use_errno=True)
    with os.fdopen(os.memfd_create("ipitrace-vvar"), "wb") as sink:
        written = libc.write(
            sink.fileno(), ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE)
        )
    return bool(written == mmap.PAGESIZE)
