# SPDX-License-Identifier: Apache-2.0
"""Rings are as large as promised and no larger, and are drained before they are full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.abi.events import RING_EVENT
from ipitrace.tracer.sizes import (
    LONGEST_PAUSE_S,
    LOSSLESS_PER_S,
    MOST_RING_BYTES,
    DrainPace,
    ring_slots,
)

SLOTS = ring_slots(2, 31)


def test_a_vm_of_a_few_vcpus_has_full_sized_rings() -> None:
    assert SLOTS == ring_slots(5, 31) == 65_536
    assert ring_slots(1, 0) == 65_536, "events that are only counted"
    assert ring_slots(16, 31) == 16_384
    assert ring_slots(240, 31) == 1_024


@given(st.integers(1, 4096), st.integers(1, 31))
def test_the_rings_of_every_vm_fit_into_the_limit(n_vcpus: int, n_rings: int) -> None:
    slots = ring_slots(n_vcpus, n_rings)
    assert slots & (slots - 1) == 0
    assert slots >= 64
    n_bytes = slots * n_vcpus * n_rings * RING_EVENT.itemsize
    assert n_bytes <= MOST_RING_BYTES
    assert slots == 65_536 or 2 * n_bytes > MOST_RING_BYTES


def most_at_once(rate: float, pace: DrainPace, *, late_s: float, seconds: float = 1.0) -> float:
    """The most records between two drains, all of which are late; the last is not the storm's."""
    now_s, most = 0.0, 0.0
    pause_s = pace.drained(0, now_s)
    while now_s < seconds:
        elapsed_s = pause_s + late_s
        now_s += elapsed_s
        most = max(most, rate * elapsed_s)
        pause_s = pace.drained(int(rate * elapsed_s), now_s)
    return most


@pytest.mark.parametrize(("known", "late_s"), [(False, 0.005), (True, 0.018)])
def test_the_promised_rate_fits_even_if_the_reader_is_late(known: bool, late_s: float) -> None:  # noqa: FBT001
    pace = DrainPace(SLOTS, LOSSLESS_PER_S if known else 0)
    assert most_at_once(LOSSLESS_PER_S, pace, late_s=late_s) < SLOTS


def test_the_time_between_drains_follows_the_rate() -> None:
    pace = DrainPace(SLOTS)
    assert pace.drained(0, 0.0) == LONGEST_PAUSE_S
    assert pace.drained(1000, 0.02) == LONGEST_PAUSE_S
    assert pace.drained(50_000, 0.04) == pytest.approx(0.02 * 16_384 / 50_000)
    assert pace.drained(65_536, 0.041) == 0.002
    assert pace.drained(0, 0.043) == LONGEST_PAUSE_S


def test_a_storm_that_is_known_to_be_fast_is_never_waited_for_longer() -> None:
    pace = DrainPace(SLOTS, 4e6)
    assert pace.drained(0, 0.0) == pace.drained(0, 1.0) == pytest.approx(16_384 / 4e6)
    assert DrainPace(SLOTS, 4e9).drained(0, 0.0) == 0.002
