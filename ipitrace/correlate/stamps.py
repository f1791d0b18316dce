# SPDX-License-Identifier: Apache-2.0
"""Arrays of stamps: their type, and the values for a missing stamp."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Stamps = NDArray[np.int64]

ABSENT: Final = np.iinfo(np.int64).min
"""The value for an event that did not happen."""

NEVER: Final = np.iinfo(np.int64).max
"""Later than any stamp: the value for an event that did not happen in a search of the earliest."""


def absent_last(stamps: Stamps) -> Stamps:
    """Replace ABSENT by NEVER, which a minimum ignores."""
    return np.where(stamps == ABSENT, NEVER, stamps)
