# SPDX-License-Identifier: Apache-2.0
"""A guest agent on a UNIX socket: honest but for what its mode spoils.

A program of its own, of the standard library alone. It runs nothing of what it is asked to.
Arguments: the socket, and a folder with `mode.json` (where it lies, and the actions to play
then) and a file for each honest answer.
"""

import base64
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLACE, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
MODE = json.loads((FOLDER / "mode.json").read_text())
IN_GUEST = "/tmp/ipitrace.ABCDEFGHIJ"
PIECE_BYTES = 1 << 16


class Agent:
    """One connection, and what was asked over it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.programs: dict[int, str] = {}
        self.files: dict[int, bytes] = {}
        self.last = ""
        self.id: dict[str, Any] = {}

    def serve(self) -> None:
        self.play("connect", None)
        for question in self.questions():
            self.id = {"id": question["id"]} if "id" in question else {}
            command, arguments = question["execute"], question.get("arguments", {})
            answer, of = self.honest(command, arguments)
            if not any(self.play(at, answer) for at in (command, f"{command} {of}")):
                self.reply(answer, b"\xff" if "delimited" in command else b"")

    def questions(self) -> Iterator[dict[str, Any]]:
        """As they come; no line needs to end with one."""
        decoder, text = json.JSONDecoder(), ""
        while data := self.connection.recv(PIECE_BYTES):
            text += data.decode("latin-1").replace("\xff", "")
            while text := text.lstrip():
                try:
                    question, end = decoder.raw_decode(text)
                except ValueError:
                    break  # the rest is still to come
                text = text[end:]
                yield question

    def play(self, at: str, answer: Any) -> bool:
        """Lie, if this is where."""
        if at not in MODE["at"]:
            return False
        for action, value in MODE["actions"]:
            ACTIONS[action](self, answer, value)
        return True

    def honest(self, command: str, arguments: dict[str, Any]) -> tuple[Any, str]:
        """The true answer, and what it concerns."""
        if command.startswith("guest-sync"):
            return arguments["id"], ""
        if command == "guest-exec":
            words = " ".join([arguments["path"], *arguments["arg"]])
            signs = [(sign, name) for sign, name in MODE["signs"].items() if sign in words]
            self.last = signs[0][1] if signs else arguments["path"]
            self.programs[len(self.programs) + 1] = self.last
            return {"pid": len(self.programs)}, self.last
        if command == "guest-exec-status":
            program = self.programs.get(arguments["pid"], "")
            answer = {"exited": True, "exitcode": MODE["codes"].get(program, 0)}
            if program == "mktemp":
                answer["out-data"] = text_of(f"{IN_GUEST}\n".encode())
            return answer, program
        if command == "guest-file-open":
            name = Path(arguments["path"]).name
            file = FOLDER / (self.last if name == "out" else f"{self.last}.{name}")
            handle = 1000 + len(self.files)
            self.files[handle] = file.read_bytes() if file.is_file() else b""
            return handle, name
        if command == "guest-file-read":
            handle, count = arguments["handle"], arguments["count"]
            part, self.files[handle] = self.files[handle][:count], self.files[handle][count:]
            rest = self.files[handle]
            return {"count": len(part), "buf-b64": text_of(part), "eof": not rest}, self.last
        return {}, ""

    def reply(self, answer: Any, before: bytes = b"") -> None:
        self.say(before + json.dumps({"return": answer, **self.id}).encode() + b"\n")

    def say(self, data: bytes) -> None:
        self.connection.sendall(data)

    def flood(self, text: str) -> None:
        piece = text.encode("latin-1")
        piece *= max(PIECE_BYTES // len(piece), 1)
        while True:
            self.say(piece)

    def drip(self, text: str) -> None:
        """A byte a second, for ever."""
        while True:
            for byte in text.encode():
                self.say(bytes([byte]))
                time.sleep(1)

    def zeros(self, announced: int) -> None:
        """A part of a file that never ends."""
        part = text_of(bytes(announced))
        self.reply({"count": announced, "buf-b64": part, "eof": False})


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ACTIONS: dict[str, Callable[[Agent, Any, Any], object]] = {
    "say": lambda agent, _, text: agent.say(text.encode("latin-1")),
    "answer": lambda agent, _, value: agent.reply(value),
    "honest": lambda agent, answer, before: agent.reply(answer, before.encode("latin-1")),
    "merge": lambda agent, answer, more: agent.reply({**answer, **more}),
    "without": lambda agent, answer, name: agent.reply(
        {known: value for known, value in answer.items() if known != name}
    ),
    "flood": lambda agent, _, text: agent.flood(text),
    "drip": lambda agent, _, text: agent.drip(text),
    "zeros": lambda agent, _, announced: agent.zeros(announced),
    "sleep": lambda _agent, _, seconds: time.sleep(seconds),
    "close": lambda agent, _, how: agent.connection.shutdown(how),
    "die": lambda *_: sys.exit(),
}
"""The steps of a mode, by name."""


def main() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(PLACE))
        server.listen()
        while True:
            connection, _ = server.accept()
            try:
                Agent(connection).serve()
            except OSError:  # ipitrace has had enough
                connection.close()


main()
