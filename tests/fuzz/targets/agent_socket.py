# SPDX-License-Identifier: Apache-2.0
"""The bytes on a guest agent's socket, which then ends."""

import contextlib
import random
import socket
import tempfile
import threading
from pathlib import Path
from unittest import mock

from ipitrace.errors import IpitraceError
from ipitrace.storm.agent import open_agent


def fuzz(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(folder, "s"))
        server.bind(path)
        server.listen()
        speaker = threading.Thread(target=_speak, args=(server, data), daemon=True)
        speaker.start()
        with (
            contextlib.suppress(IpitraceError),
            mock.patch.object(random, "getrandbits", return_value=7),
            open_agent(socket=path) as agent,
        ):
            agent.ask("guest-info")
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # where nobody connected
        speaker.join()


def _speak(server: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection, _address = server.accept()
        with connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
