# SPDX-License-Identifier: Apache-2.0
"""What the helper in a Linux guest says of itself: the JSON of `ipitrace-storm status`."""

import contextlib

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.linux.driver import LinuxGuest

from ..pieces import saying_guest


def fuzz(data: bytes) -> None:
    with contextlib.suppress(IpitraceError):
        guest = LinuxGuest.prepare(saying_guest(status=data), None)
        guest.describe()
