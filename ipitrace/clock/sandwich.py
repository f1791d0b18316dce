# SPDX-License-Identifier: Apache-2.0
"""Read the host's two clocks, TSC and CLOCK_MONOTONIC, together.

BPF stamps events with CLOCK_MONOTONIC (bpf_ktime_get_ns); guests stamp with the TSC. A
sandwich reads TSC, CLOCK_MONOTONIC and TSC in a row. The true TSC at the reading of
CLOCK_MONOTONIC is between the two TSC values, so half their distance bounds the error.
Where the kernel's own line from TSC to ns is known, the two TSC values only confirm it.
"""

import ctypes
import itertools
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ipitrace.base.units import NS_PER_S
from ipitrace.clock.kernel_line import KernelLines, find_kernel_lines

_ATTEMPTS = 200

SANDWICH_LISTING: tuple[tuple[str, str], ...] = (
    # void sandwich(u64 (*out)[4], long n, int (*clock_gettime)(int, void *), int clock)
    # The five pushes leave the stack aligned as the ABI requires at the call.
    ("53", "push rbx"),
    ("41 54", "push r12"),
    ("41 55", "push r13"),
    ("41 56", "push r14"),
    ("41 57", "push r15"),
    ("48 89 fb", "mov rbx, rdi"),
    ("49 89 f4", "mov r12, rsi"),
    ("49 89 d5", "mov r13, rdx"),
    ("41 89 ce", "mov r14d, ecx"),
    # LFENCE around RDTSC: Intel SDM vol. 2B, RDTSC.
    ("0f ae e8", "again: lfence"),
    ("0f 31", "rdtsc"),
    ("0f ae e8", "lfence"),
    ("48 c1 e2 20", "shl rdx, 32"),
    ("48 09 d0", "or rax, rdx"),
    ("48 89 03", "mov [rbx], rax"),
    ("44 89 f7", "mov edi, r14d"),
    ("48 8d 73 08", "lea rsi, [rbx + 8]"),
    ("41 ff d5", "call r13"),
    ("0f ae e8", "lfence"),
    ("0f 31", "rdtsc"),
    ("0f ae e8", "lfence"),
    ("48 c1 e2 20", "shl rdx, 32"),
    ("48 09 d0", "or rax, rdx"),
    ("48 89 43 18", "mov [rbx + 24], rax"),
    ("48 83 c3 20", "add rbx, 32"),
    ("49 ff cc", "dec r12"),
    ("75 c8", "jne again"),
    ("41 5f", "pop r15"),
    ("41 5e", "pop r14"),
    ("41 5d", "pop r13"),
    ("41 5c", "pop r12"),
    ("5b", "pop rbx"),
    ("c3", "ret"),
)
"""The sandwich's machine code with its assembly; a test assembles it and compares the two."""


@dataclass(frozen=True)
class Sandwich:
    """One reading of both clocks: the TSC was `tsc` +- `half_width_cycles` at `ts_ns`."""

    tsc: int
    ts_ns: int
    half_width_cycles: float


@dataclass(frozen=True)
class TscFrequency:
    """The TSC's rate in CLOCK_MONOTONIC seconds, with the error bound of the sandwiches."""

    hz: float
    error_hz: float


class Clock:
    """Takes sandwiches with a short machine code routine, without Python between the readings."""

    def __init__(self, resolution_ns: int = 1) -> None:
        """Prepare the code; `resolution_ns` is the step of CLOCK_MONOTONIC on this host.

        Raises:
            OSError: the host does not allow this process to use executable memory.
        """
        self.resolution_ns = resolution_ns
        code = bytes.fromhex("".join(octets for octets, _mnemonic in SANDWICH_LISTING))
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(code)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if libc.mprotect(
            ctypes.c_void_p(address),
            ctypes.c_size_t(mmap.PAGESIZE),
            mmap.PROT_READ | mmap.PROT_EXEC,
        ):
            raise OSError(ctypes.get_errno(), "executable memory is not allowed")
        prototype = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_int
        )
        self._code = prototype(address)
        self._clock_gettime = ctypes.cast(libc.clock_gettime, ctypes.c_void_p)
        self._lines = find_kernel_lines()

    def sandwich(self, attempts: int = _ATTEMPTS) -> Sandwich:
        """The narrowest of `attempts` sandwiches (about 0.1 us each)."""
        rows = np.zeros((attempts, 4), np.int64)
        self._code(rows.ctypes.data, attempts, self._clock_gettime, time.CLOCK_MONOTONIC)
        widths = rows[:, 3] - rows[:, 0]
        before, seconds, ns, after = (int(v) for v in rows[int(np.argmin(widths))])
        return narrowed(before, seconds * NS_PER_S + ns, after, self._lines)


def narrowed(before: int, ts_ns: int, after: int, lines: KernelLines | None = None) -> Sandwich:
    """The sandwich of three readings; by the kernel's own line if that agrees with them.

    A stamp is truncated to whole ns: by the line, the TSC was anywhere in this ns.
    """
    for line in lines.read() if lines else ():
        first, beyond = line.first_tsc(ts_ns), line.first_tsc(ts_ns + 1)
        if before < beyond and first <= after:
            return Sandwich((first + beyond) // 2, ts_ns, (beyond - first) / 2)
    width = after - before
    return Sandwich(before + width // 2, ts_ns, width / 2)


def measure_frequency(sandwiches: Sequence[Sandwich]) -> TscFrequency | None:
    """The TSC's rate from the first to the last sandwich; None if they are at the same time."""
    if len(sandwiches) < 2:  # noqa: PLR2004
        return None
    first, last = sandwiches[0], sandwiches[-1]
    span_ns = last.ts_ns - first.ts_ns
    if span_ns <= 0:
        return None
    error_cycles = first.half_width_cycles + last.half_width_cycles
    return TscFrequency(
        (last.tsc - first.tsc) * NS_PER_S / span_ns, error_cycles * NS_PER_S / span_ns
    )


def tsc_went_backwards(sandwiches: Sequence[Sandwich]) -> bool:
    """Whether the TSC decreased between two sandwiches."""
    return any(b.tsc <= a.tsc for a, b in itertools.pairwise(sandwiches))
