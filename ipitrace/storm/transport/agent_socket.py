# SPDX-License-Identifier: Apache-2.0
"""The wire to a guest agent: JSON texts, a line each, over a socket whose other end may lie.

The agent greets nobody and answers one question after the other. What it says is bounded in
bytes, lines and time, and no more than one answer of it is ever held.
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
from ipitrace.storm.guest_json import (
    checked,
    member,
)

_CHUNK_BYTES: Final = 64 << 10
_SENTINEL: Final = b"\xff"  # guest-sync-delimited in QEMU's qga/qapi-schema.json


class RefusedError(Exception):
    """The agent's own error, in its own words."""


class AgentSocket:
    """A connected stream socket with an agent behind it, asked one question at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._in_step = False
        self._gone = False

    def ask(self, command: str, arguments: Mapping[str, object]) -> object:
        """The agent's answer.

        Raises:
            RefusedError: it says no.
            ValueError: it answers something else, or too much.
            TimeoutError: it does not answer in time.
            OSError: the connection is lost, or was given up: who lied once, or did not answer
                twice, is asked no more.
        """
        if self._gone:
            raise ConnectionAbortedError("it was given up")
        if not self._in_step:
            self.synchronise()
        self._in_step = False  # also when a person interrupts us
        deadline_s = time.monotonic() + limits.ANSWER_S
        try:
            self._send({"execute": command, "arguments": arguments}, deadline_s)
            answer = self._answer(deadline_s)
        except TimeoutError:
            raise  # the answer may come late: synchronise() passes over it
        except (ValueError, OSError):
            self._gone = True
            raise
        self._in_step = True
        if "error" in answer:
            raise RefusedError(plain(member(answer["error"], "desc", str)))
        return answer["return"]

    def synchronise(self) -> None:
        """Pass over half a question of somebody before us, and over the answers to others.

        Raises:
            ValueError, TimeoutError, OSError: as ask(); it is asked no more then.
        """
        deadline_s = time.monotonic() + limits.ANSWER_S
        try:
            self._ask_for_sentinel(deadline_s)
        except (ValueError, OSError):
            self._gone = True
            raise
        self._in_step = True

    def _ask_for_sentinel(self, deadline_s: float) -> None:
        number = secrets.randbits(31)
        question = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._send(question, deadline_s, before=_SENTINEL)
        for _ in range(limits.ASIDE_LINES):
            self._skip_to_sentinel(deadline_s)
            if self._parsed(self._line(deadline_s)).get("return") == number:
                return
        raise ValueError("it answers others' questions")

    def _send(
        self, question: Mapping[str, object], deadline_s: float, *, before: bytes = b""
    ) -> None:
        self._wait_until(deadline_s)
        self._connection.sendall(before + json.dumps(question).encode() + b"\n")

    def _answer(self, deadline_s: float) -> dict[str, object]:
        """The next line that answers anything."""
        aside_bytes = 0
        for _ in range(limits.ASIDE_LINES):
            line = self._line(deadline_s)
            answer = self._parsed(line)
            if "return" in answer or "error" in answer:
                return answer
            aside_bytes += len(line)
            if aside_bytes > limits.ASIDE_BYTES:
                break
        raise ValueError("it says everything but an answer")

    @staticmethod
    def _parsed(line: bytes) -> dict[str, object]:
        answer: dict[str, object] = checked(parse_json(line, limits.ANSWER_BYTES), dict, "it")
        return answer

    def _line(self, deadline_s: float) -> bytes:
        looked = 0
        while (end := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > limits.ANSWER_BYTES:
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
                raise ValueError("it says everything but an answer")
            self._receive(deadline_s)
        del self._buffer[: at + 1]

    def _receive(self, deadline_s: float) -> None:
        self._wait_until(deadline_s)
        chunk = self._connection.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("its end was closed")
        self._buffer += chunk

    def _wait_until(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
