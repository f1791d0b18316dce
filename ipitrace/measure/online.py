# SPDX-License-Identifier: Apache-2.0
"""Checks whether the CPUs to which vCPUs are pinned stay online."""

import time
from typing import Final

from ipitrace.base.errors import MeasurementError
from ipitrace.host.conditions import read_conditions
from ipitrace.host.files import HOST, HostFiles
from ipitrace.measure.steadiness import cpus_of

_EVERY_S: Final = 1.0  # a check takes 0.1 ms of the controller's time


def gone_offline(
    pinned: tuple[int, ...] | None, files: HostFiles = HOST
) -> MeasurementError | None:
    """The error of a run in which a vCPU's CPU went offline; None if none did.

    The vCPU's thread then shares another vCPU's CPU, and each IPI takes as long as the
    scheduler's time slices. The storm fails, or its numbers are worthless.
    """
    online = read_conditions((), (), files).online
    gone = set(pinned or ()) - set(online) if online is not None else set()
    if not gone:
        return None
    return MeasurementError(
        f"{cpus_of(gone)} went offline during the run.",
        "Keep the vCPUs' CPUs online during the run.",
    )


class OnlineCheck:
    """Checks the CPUs once a second while storms run."""

    def __init__(self, pinned: tuple[int, ...] | None) -> None:
        self._pinned = pinned
        self._next_s = 0.0

    def check(self) -> None:
        """Check if the last check was a second ago or more.

        Raises:
            MeasurementError: a vCPU's CPU went offline.
        """
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        if error := gone_offline(self._pinned):
            raise error
