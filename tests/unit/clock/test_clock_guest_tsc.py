# SPDX-License-Identifier: Apache-2.0
"""Guest TSC from host TSC: 128-bit products in NumPy against Python's own integers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipitrace.clock import GuestTsc, offset_changes, own_guest_tsc

WORD = 1 << 64
FRAC_BITS = st.sampled_from([32, 48])
WORDS = st.integers(0, WORD - 1)
OFFSETS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def scaled(draw: st.DrawFn) -> GuestTsc:
    """A guest between a tenth of and ten times the host's rate."""
    frac_bits = draw(FRAC_BITS)
    ratio = draw(st.integers((1 << frac_bits) // 10, 10 << frac_bits))
    return GuestTsc(draw(OFFSETS), ratio, frac_bits)


def exact(tsc: GuestTsc, host: int) -> int:
    return (((host * tsc.ratio) >> tsc.frac_bits) + tsc.offset) % WORD


@given(scaled(), st.lists(WORDS, min_size=1, max_size=20))
@example(GuestTsc(-1, (10 << 48), 48), [WORD - 1, 0, 1 << 32, (1 << 32) - 1])
@example(GuestTsc(1, 1, 0), [WORD - 1])
@example(GuestTsc(0, (1 << 60) - 1, 48), [WORD - 1])
@example(GuestTsc(0, (1 << 60) - 1, 0), [WORD - 1])
def test_to_guest_is_exact(tsc: GuestTsc, hosts: list[int]) -> None:
    answer = tsc.to_guest(np.array(hosts, np.uint64))
    assert answer.dtype == np.uint64
    assert answer.tolist() == [exact(tsc, host) for host in hosts]


@given(scaled(), st.lists(st.integers(0, WORD // 11), min_size=1, max_size=20))
@example(GuestTsc(7, (1 << 48) + 1, 48), [(1 << 53) + 1, WORD // 11])
@example(GuestTsc(7, (1 << 48) - 1, 48), [(1 << 53) + 1, 1, 0])
@example(GuestTsc(0, (1 << 32) // 10, 32), [0, 1, 9, 10, 11])
def test_to_host_finds_the_first_cycle(tsc: GuestTsc, hosts: list[int]) -> None:
    guests = tsc.to_guest(np.array(hosts, np.uint64))
    for host, found in zip(hosts, tsc.to_host(guests).tolist(), strict=True):
        assert exact(tsc, found) == exact(tsc, host)
        assert found <= host
        if tsc.scale >= 1:
            assert found == host
        elif found:  # the cycle before shows less, so this is the first
            assert exact(tsc, found - 1) == (exact(tsc, host) - 1) % WORD


@given(scaled(), st.integers(0, WORD // 100))
def test_a_guest_stamp_that_no_host_cycle_shows_maps_to_the_next(
    tsc: GuestTsc, unscaled: int
) -> None:
    guest = (unscaled + tsc.offset) % WORD
    (found,) = tsc.to_host(np.array([guest], np.uint64)).tolist()
    assert found == -(-(unscaled << tsc.frac_bits) // tsc.ratio)


@given(OFFSETS, st.lists(WORDS, max_size=20))
def test_an_offset_alone_wraps_both_ways(offset: int, hosts: list[int]) -> None:
    tsc = GuestTsc(offset)
    guests = tsc.to_guest(np.array(hosts, np.uint64))
    assert guests.tolist() == [(host + offset) % WORD for host in hosts]
    assert tsc.to_host(guests).tolist() == hosts


def test_signed_stamps_and_any_shape() -> None:
    host = np.arange(6, dtype=np.int64).reshape(2, 3)
    guest = GuestTsc(-5).to_guest(host)
    assert guest.shape == (2, 3)
    assert guest[0, 0] == WORD - 5
    assert GuestTsc(-5).to_host(guest).tolist() == host.tolist()
    assert GuestTsc(0, 3 << 31, 32).to_host(np.empty(0, np.uint64)).shape == (0,)
    assert GuestTsc(-7, 3 << 31, 32).to_host(np.array(0, np.int64)) == 5
    assert GuestTsc(-7, 3 << 31, 32).to_guest(np.array(5, np.int64)) == 0


@pytest.mark.parametrize(
    ("ratio", "frac_bits"), [(0, 48), (1 << 60, 48), (-1, 32), (1, 49), (1, -1)]
)
def test_impossible_ratios(ratio: int, frac_bits: int) -> None:
    with pytest.raises(ValueError, match="invalid TSC ratio"):
        GuestTsc(0, ratio, frac_bits)


def test_a_vm_of_our_own_is_not_scaled() -> None:
    assert own_guest_tsc(-3, 2_596_000, 2_596_134_000.0) == (GuestTsc(-3), None)
    assert own_guest_tsc(0, None, 2e9) == (GuestTsc(0), None)
    assert own_guest_tsc(0, 2_000_000, None) == (GuestTsc(0), None)


def test_a_vm_of_our_own_with_another_rate_or_no_offset() -> None:
    tsc, why = own_guest_tsc(0, 2_000_000, 2_500_000_000.0)
    assert tsc is None
    assert "-200000 ppm" in (why or "")
    tsc, why = own_guest_tsc(None, 2_000_000, 2e9)
    assert tsc is None
    assert "offset" in (why or "")


@pytest.mark.parametrize(
    ("start", "end", "writes", "suspect"),
    [
        (0, 0, [], []),
        (0, 0, [150, 160], []),  # written, but what was written already held
        (0, -7, [150], [(150, 150)]),
        (0, -7, [180, 120, 150], [(120, 180)]),
        (0, -7, [], [(100, 200)]),
        (0, -7, [99, 201], [(100, 200)]),  # outside the run: no help
        (0, -7, [99, 150, 201], [(150, 150)]),
        (None, None, [], []),
        (None, None, [150], [(100, 200)]),
        (0, None, [150, 160], [(150, 200)]),
        (None, 0, [150, 160], [(100, 160)]),
        (None, 0, [], []),
    ],
)
def test_when_an_offset_is_suspect(
    start: int | None, end: int | None, writes: list[int], suspect: list[tuple[int, int]]
) -> None:
    assert offset_changes(start, end, (100, 200), writes) == suspect
    assert offset_changes(start, end, (100, 200), np.array(writes, np.int64)) == suspect
