# SPDX-License-Identifier: Apache-2.0
"""A guest's /proc/cpuinfo."""

import contextlib

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.linux.driver import LinuxGuest

from ..pieces import saying_guest


def fuzz(data: bytes) -> None:
    with contextlib.suppress(IpitraceError):
        guest = LinuxGuest.prepare(saying_guest(cpuinfo=data), None)
        guest.describe()
