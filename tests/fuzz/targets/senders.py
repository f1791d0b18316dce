# SPDX-License-Identifier: Apache-2.0
"""What the scripts in a guest say of the senders of its IPIs, as far as every format of it."""

import contextlib

from ipitrace.base.errors import IpitraceError
from ipitrace.render.formats import SENDERS
from ipitrace.senders.counting import count_senders
from ipitrace.storm.transport.shell import Finished

from ..pieces import SayingShell


def fuzz(data: bytes) -> None:
    with contextlib.suppress(IpitraceError):
        senders = count_senders(SayingShell(lambda _command: Finished(0, data, "")), 1.0)
        for name in SENDERS.formats:
            SENDERS.render(name, senders)
