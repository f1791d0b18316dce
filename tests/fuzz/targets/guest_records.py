# SPDX-License-Identifier: Apache-2.0
"""What a storm in a Linux guest leaves: its records, its exit status, its words; summarised, too.

The last byte says how the program in the guest ended, the others are what it printed.
"""

import contextlib

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.plausible import run_plausible
from ipitrace.storm.transport.shell import Finished
from ipitrace.summary import reduce_storm
from ipitrace.words.scenarios import SCENARIOS, Mode, Route

from ..pieces import saying_guest

_SCENARIO = next(s for s in SCENARIOS if s.name == "unicast-running")


def fuzz(data: bytes) -> None:
    status = data[-1] % 8 if data else 0
    words = data.decode(errors="replace") if status else ""
    shell = saying_guest(run=Finished(status, data[:-1], words))
    with contextlib.suppress(IpitraceError):
        guest = LinuxGuest.prepare(shell, None)
        request = StormRequest(_SCENARIO, n_vcpus=2, count=4, warmup=1, pace_cycles=0)
        storm = run_plausible(guest, request, Hooks())
        reduce_storm(storm, [Route(0, guest.targets(_SCENARIO))], Mode.OFF)
