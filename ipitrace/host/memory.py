# SPDX-License-Identifier: Apache-2.0
"""Check that the host has enough memory for an allocation."""

import psutil

from ipitrace.base.errors import HostError
from ipitrace.base.units import MIB

_KEEP_FREE = 64 * MIB


def require_memory(size: int, what: str) -> None:
    """Check that an allocation of `size` bytes for `what` leaves memory for other programs.

    Raises:
        HostError: it is larger than what the kernel reports as available.
    """
    available = psutil.virtual_memory().available
    if size + _KEEP_FREE > available:
        raise HostError(
            f"{what} needs {size // MIB} MiB, and only {available // MIB} MiB are available.",
            "Free memory, or ask for a smaller --count.",
        )
