# SPDX-License-Identifier: Apache-2.0
"""The protocol of a guest agent: JSON texts, one per line, over a socket with an untrusted peer.

The agent sends no greeting and answers one command after the other. Its output is limited in
bytes, lines and time, and at most one answer is held in memory.
"""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Final

from ipitrace.base.foreign import plain
from ipitrace.base.untrusted import parse_json
from ipitrace.storm import limits
from ipitrace.storm.guest_json import checked, member

_CHUNK_BYTES: Final = 64 << 10
_SENTINEL: Final = b"\xff"  # guest-sync-delimited in QEMU's qga/qapi-schema.json


class RefusedError(Exception):
    """An error that the agent reports, with its own message."""


class AgentSocket:
    """A connected stream socket to an agent; one command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._synchronised = False
        self._closed = False

    def ask(self, command: str, arguments: Mapping[str, object]) -> object:
        """The agent's answer to a command.

        Raises:
            RefusedError: it reports an error.
            ValueError: the answer is not valid, or too long.
            TimeoutError: it does not answer in time.
            OSError: the connection is lost, or was closed: after one invalid answer, or two
                missing answers, no further command is sent.
        """
        if self._closed:
            raise ConnectionAbortedError("it was closed after an error")
        if not self._synchronised:
            self.synchronise()
        self._synchronised = False  # also after an interruption
        deadline_s = time.monotonic() + limits.ANSWER_S
        try:
            self._send({"execute": command, "arguments": arguments}, deadline_s)
            answer = self._answer(deadline_s)
        except TimeoutError:
            raise  # the answer may come late: synchronise() skips it
        except (ValueError, OSError):
            self._closed = True
            raise
        self._synchronised = True
        if "error" in answer:
            raise RefusedError(plain(member(answer["error"], "desc", str)))
        return answer["return"]

    def synchronise(self) -> None:
        """Skip an incomplete command of a previous client, and answers to other clients.

        Raises:
            ValueError, TimeoutError, OSError: as ask(); no further command is sent.
        """
        deadline_s = time.monotonic() + limits.ANSWER_S
        try:
            self._send_sync(deadline_s)
        except (ValueError, OSError):
            self._closed = True
            raise
        self._synchronised = True

    def _send_sync(self, deadline_s: float) -> None:
        number = secrets.randbits(31)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._send(request, deadline_s, before=_SENTINEL)
        for _ in range(limits.ASIDE_LINES):
            self._skip_to_sentinel(deadline_s)
            if self._parsed(self._line(deadline_s)).get("return") == number:
                return
        raise ValueError("it answers other clients' commands")

    def _send(
        self, request: Mapping[str, object], deadline_s: float, *, before: bytes = b""
    ) -> None:
        self._wait_until(deadline_s)
        self._connection.sendall(before + json.dumps(request).encode() + b"\n")

    def _answer(self, deadline_s: float) -> dict[str, object]:
        """The next line that is an answer."""
        aside_bytes = 0
        for _ in range(limits.ASIDE_LINES):
            line = self._line(deadline_s)
            answer = self._parsed(line)
            if "return" in answer or "error" in answer:
                return answer
            aside_bytes += len(line)
            if aside_bytes > limits.ASIDE_BYTES:
                break
        raise ValueError("it sends everything but an answer")

    @staticmethod
    def _parsed(line: bytes) -> dict[str, object]:
        answer: dict[str, object] = checked(parse_json(line, limits.ANSWER_BYTES), dict, "it")
        return answer

    def _line(self, deadline_s: float) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limits.ANSWER_BYTES:
                raise ValueError(f"a line has more than {limits.ANSWER_BYTES} bytes")
            self._receive(deadline_s)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _skip_to_sentinel(self, deadline_s: float) -> None:
        skipped = 0
        while (at := self._buffer.find(_SENTINEL)) < 0:
            skipped += len(self._buffer)
            self._buffer.clear()
            if skipped > limits.ASIDE_BYTES:
                raise ValueError("it sends everything but an answer")
            self._receive(deadline_s)
        del self._buffer[: at + 1]

    def _receive(self, deadline_s: float) -> None:
        self._wait_until(deadline_s)
        chunk = self._connection.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("the agent closed it")
        self._buffer += chunk

    def _wait_until(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
