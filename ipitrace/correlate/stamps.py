# SPDX-License-Identifier: Apache-2.0
"""Arrays of stamps: their type, and what stands in them for no moment."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Stamps = NDArray[np.int64]

ABSENT: Final = np.iinfo(np.int64).min
"""Stands in arrays of stamps for what did not happen."""

NEVER: Final = np.iinfo(np.int64).max
"""Later than any stamp: stands for what did not happen where the earliest is searched."""


def absent_last(stamps: Stamps) -> Stamps:
    """NEVER instead of ABSENT, so that a minimum passes it over."""
    return np.where(stamps == ABSENT, NEVER, stamps)
