# SPDX-License-Identifier: Apache-2.0
import ctypes
import itertools
import platform
import time

import pytest

from ipitrace.clock import Clock, Sandwich, measure_frequency, tsc_went_backwards


def test_the_rate_and_its_bound() -> None:
    first, last = Sandwich(1_000, 0, 20.0), Sandwich(3_000_001_000, 1_000_000_000, 30.0)
    frequency = measure_frequency([first, Sandwich(5, 7, 1e9), last])
    assert frequency is not None
    assert frequency.hz == 3e9
    assert frequency.error_hz == 50.0


@pytest.mark.parametrize("sandwiches", [[], [Sandwich(1, 1, 1.0)], [Sandwich(1, 1, 1.0)] * 2])
def test_no_time_passed_no_rate(sandwiches: list[Sandwich]) -> None:
    assert measure_frequency(sandwiches) is None


def test_a_tsc_that_runs_backwards_or_stands_is_told() -> None:
    up = [Sandwich(tsc, tsc, 1.0) for tsc in (10, 20, 30)]
    assert not tsc_went_backwards(up)
    assert not tsc_went_backwards(up[:1])
    assert tsc_went_backwards([*up, Sandwich(30, 40, 1.0)])
    assert tsc_went_backwards([up[0], up[2], up[1], Sandwich(99, 99, 1.0)])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code for x86-64")
def test_real_sandwiches() -> None:
    clock = Clock()
    taken = []
    for _ in range(5):
        before_ns = time.monotonic_ns()
        taken.append(clock.sandwich())
        assert before_ns <= taken[-1].ts_ns <= time.monotonic_ns()
    for one, other in itertools.pairwise(taken):
        assert one.tsc < other.tsc
        assert one.ts_ns < other.ts_ns
    assert all(one.half_width_cycles > 0 for one in taken)
    assert not tsc_went_backwards(taken)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code for x86-64")
def test_the_tightest_attempt_is_kept() -> None:
    """Of the widths of one call the answer is the smallest, its stamps of the same row."""
    clock = Clock()
    real, rows = clock._code, []

    def planted(address: int, attempts: int, *_: object) -> None:
        table = (ctypes.c_int64 * (4 * attempts)).from_address(address)
        table[:] = [v for i in range(attempts) for v in (100 * i, i, 7, 100 * i + 50 - i % 3)]
        rows.append(attempts)

    clock._code = planted  # type: ignore[assignment]
    assert clock.sandwich(4) == Sandwich(200 + 24, 2 * 1_000_000_000 + 7, 24.0)
    assert rows == [4]
    clock._code = real
