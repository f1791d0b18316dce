# SPDX-License-Identifier: Apache-2.0
"""Clock readings of any kind: the map from host ns to TSC, and a guest's TSC offset and ratio."""

import contextlib

import numpy as np

from ipitrace.base.errors import MeasurementError
from ipitrace.clock.guest_tsc import GuestTsc, offset_changes, own_guest_tsc
from ipitrace.clock.host_map import HostClockMap
from ipitrace.clock.sandwich import Sandwich, measure_frequency, tsc_went_backwards

from ..pieces import Pieces

_INT64 = 1 << 63


def _int64(number: int) -> int:
    return (number + _INT64) % (2 * _INT64) - _INT64


def fuzz(data: bytes) -> None:
    pieces = Pieces(data)
    sandwiches = []
    stamps = [_int64(pieces.number()) for _ in range(3)]
    guest = (pieces.number(), pieces.number(), pieces.byte())
    # what Clock reads: ns since boot, a TSC that counts up, a width
    while pieces and len(sandwiches) < 64:
        ts_ns = abs(_int64(pieces.number())) >> 1
        tsc = abs(_int64(pieces.number())) >> 1
        sandwiches.append(Sandwich(tsc, ts_ns, pieces.byte() / 2))
    measure_frequency(sandwiches)
    tsc_went_backwards(sandwiches)
    with contextlib.suppress(MeasurementError), np.errstate(all="ignore"):
        clock = HostClockMap.build(sandwiches)
        clock.to_tsc(sandwiches[0].ts_ns)
        clock.bound_cycles(sandwiches[-1].ts_ns)
        clock.drift()
    with contextlib.suppress(ValueError):
        GuestTsc(*guest).to_guest(np.array(stamps))
    own_guest_tsc(guest[0], guest[1], 2e9)
    offset_changes(guest[0], guest[1], (stamps[0], stamps[1]), stamps)
