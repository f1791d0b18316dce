# SPDX-License-Identifier: Apache-2.0
"""The kernel's own line from TSC to ns: found in any layout, and used only where it agrees."""

import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.base.units import NS_PER_S
from ipitrace.clock.kernel_line import KernelLine, KernelLines, _lines, find_kernel_lines
from ipitrace.clock.sandwich import Clock, narrowed

LINE = KernelLine(10**14, 6_462_474, 24, 36_872, 275_570_203 << 24)
ALL_BITS = (1 << 64) - 1


def page(line: KernelLine, *, at: int = 0, mode: int = 1, max_cycles: bool = True) -> bytes:
    """The data page's part that the line is in, as the kernel lays it out."""
    words = [ALL_BITS, line.mult | line.shift << 32]
    realtime, monotonic = (1, 2), (line.seconds, line.shifted_ns)
    clock = struct.pack("<IIQ", 16_737_390, mode, line.cycle_last)
    clock += struct.pack("<Q", 2_571_567_588_362) if max_cycles else b""
    return bytes(at) + clock + struct.pack("<6Q", *words, *realtime, *monotonic) + bytes(512)


def ns_at(line: KernelLine, tsc: int) -> int:
    ahead = (tsc - line.cycle_last) * line.mult + line.shifted_ns
    return line.seconds * NS_PER_S + (ahead >> line.shift)


@pytest.mark.parametrize("max_cycles", [True, False])
@pytest.mark.parametrize("at", [0, 8, 128])
def test_every_layout_is_found(at: int, *, max_cycles: bool) -> None:
    assert LINE in _lines(page(LINE, at=at, max_cycles=max_cycles))


@pytest.mark.parametrize("mode", [0, 2, 3, 0x7FFFFFFF])
def test_another_clock_than_the_tsc_has_no_line(mode: int) -> None:
    assert list(_lines(page(LINE, mode=mode))) == []


@given(st.binary(max_size=1024))
def test_any_page_can_be_searched(content: bytes) -> None:
    assert all(line.mult for line in _lines(content))
    assert all(line.mult for line in _lines(content + b"\xff" * 64))


@given(st.integers(0, 10**13), st.integers(1, 2**32 - 1), st.integers(0, 32))
def test_the_first_tsc_of_a_ns_is_the_first(ahead_ns: int, mult: int, shift: int) -> None:
    line = KernelLine(10**14, mult, shift, 5, 123 << shift)
    wanted = 5 * NS_PER_S + 123 + ahead_ns
    first = line.first_tsc(wanted)
    assert ns_at(line, first) >= wanted > ns_at(line, first - 1)


class Fixed(KernelLines):
    def __init__(self, *lines: KernelLine) -> None:
        self.lines = lines

    def read(self) -> tuple[KernelLine, ...]:
        return self.lines


def test_a_line_that_agrees_narrows_the_reading() -> None:
    tsc = LINE.cycle_last + 1_000_000
    ts_ns = ns_at(LINE, tsc)
    found = narrowed(tsc - 40, ts_ns, tsc + 60, Fixed(LINE))
    assert abs(found.tsc - tsc) <= 2
    assert found.half_width_cycles <= 2


@pytest.mark.parametrize("off_ns", [-60, 60])
def test_a_line_that_contradicts_the_reading_is_not_used(off_ns: int) -> None:
    tsc = LINE.cycle_last + 1_000_000
    ts_ns = ns_at(LINE, tsc) + off_ns
    found = narrowed(tsc - 40, ts_ns, tsc + 60, Fixed(LINE))
    assert (found.tsc, found.half_width_cycles) == (tsc + 10, 50)
    assert narrowed(tsc - 40, ts_ns, tsc + 60) == found


def test_of_several_lines_the_one_that_agrees_is_used() -> None:
    tsc = LINE.cycle_last + 1_000_000
    other = KernelLine(LINE.cycle_last, LINE.mult, LINE.shift, 0, 0)
    found = narrowed(tsc - 40, ns_at(LINE, tsc), tsc + 60, Fixed(other, LINE))
    assert found.half_width_cycles <= 2


def readings() -> Iterator[tuple[int, int, int]]:
    """Pairs of true readings of this machine, without the line."""
    clock = Clock()
    clock._lines = None
    for _ in range(20):
        one = clock.sandwich()
        half = int(one.half_width_cycles)
        yield one.tsc - half, one.ts_ns, one.tsc + half
        time.sleep(0.003)


def test_this_kernels_line_agrees_with_every_reading() -> None:
    lines = find_kernel_lines()
    if lines is None or not lines.read():
        pytest.skip("this kernel's clock is not the TSC, or its page is not mapped")
    for before, ts_ns, after in readings():
        found = narrowed(before, ts_ns, after, lines)
        assert found.half_width_cycles < (after - before) / 4
