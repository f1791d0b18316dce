# SPDX-License-Identifier: Apache-2.0
"""The size of the rings, and the time between two drains.

A ring loses records if its writer fills it between two drains. Which rate comes is not known when
the rings are made: the guest determines it. The rings are therefore made for LOSSLESS_PER_S, and a
faster writer, or a late reader, is answered by draining sooner.
"""

from typing import Final

from ipitrace.abi.events import RING_EVENT
from ipitrace.base.units import MIB

LOSSLESS_PER_S: Final = 2_500_000
"""Records per second that the full-sized ring of one event of one vCPU takes without a loss."""

MOST_RING_BYTES: Final = 256 * MIB
"""The memory of all rings of one tracer; the kernel cannot swap it out."""

LONGEST_PAUSE_S: Final = 0.02
_SHORTEST_PAUSE_S: Final = 0.002
_MOST_SLOTS: Final = 1 << (int(LOSSLESS_PER_S * LONGEST_PAUSE_S) - 1).bit_length()
_FEWEST_SLOTS: Final = 64
_FILLED: Final = 4  # a drain should find a ring filled to a quarter at most


def ring_slots(n_vcpus: int, n_rings: int) -> int:
    """The slots of each ring, a power of two: 65,536, or fewer for MOST_RING_BYTES.

    `n_rings` is the number of recorded events. With fewer slots, the lossless rate is lower in
    proportion. Losses are counted (TraceLosses).
    """
    fitting = MOST_RING_BYTES // (RING_EVENT.itemsize * max(n_vcpus * n_rings, 1))
    power = 1 << max(fitting, 1).bit_length() - 1
    return max(min(power, _MOST_SLOTS), _FEWEST_SLOTS)


class DrainPace:
    """Chooses the time to the next drain from the rate that the last one found."""

    def __init__(self, n_slots: int, expected_per_s: float = 0.0) -> None:
        """`expected_per_s`: the records per second of one ring for which to be ready."""
        self._goal = n_slots / _FILLED
        self._expected_per_s = expected_per_s
        self._last_s: float | None = None

    def drained(self, n_records: int, now_s: float) -> float:
        """The seconds until the next drain.

        `n_records`: the most new records of any ring. `now_s`: the time of the drain.
        """
        elapsed_s = LONGEST_PAUSE_S if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        per_s = max(n_records / max(elapsed_s, _SHORTEST_PAUSE_S), self._expected_per_s)
        wanted_s = self._goal / per_s if per_s else LONGEST_PAUSE_S
        return min(max(wanted_s, _SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
