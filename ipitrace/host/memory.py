# SPDX-License-Identifier: Apache-2.0
"""Is there memory for what is about to be asked of the host?"""

import psutil

from ipitrace.base.errors import HostError
from ipitrace.base.units import MIB

_KEEP_FREE = 64 * MIB


def require_memory(size: int, what: str) -> None:
    """See that `size` bytes for `what` leave the host's other programs alone.

    Raises:
        HostError: they do not fit in what the kernel says is available.
    """
    available = psutil.virtual_memory().available
    if size + _KEEP_FREE > available:
        raise HostError(
            f"{what} needs {size // MIB} MiB, and only {available // MIB} MiB are available.",
            "Free memory, or ask for a smaller --count.",
        )
