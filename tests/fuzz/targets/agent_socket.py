# SPDX-License-Identifier: Apache-2.0
"""The bytes on a guest agent's socket, which then ends."""

import contextlib
import secrets
import socket
from unittest import mock

from ipitrace.base.errors import IpitraceError
from ipitrace.storm.transport.agent import open_agent


def fuzz(data: bytes) -> None:
    ours, guests = socket.socketpair()
    with ours, guests:
        guests.sendall(data)  # a socket's buffer holds more than engines make
        guests.shutdown(socket.SHUT_WR)
        with (
            contextlib.suppress(IpitraceError),
            mock.patch.object(secrets, "randbits", return_value=7),
            open_agent(socket="agent", connected=ours) as agent,
        ):
            for _ in range(2):
                agent.ask("guest-info")
