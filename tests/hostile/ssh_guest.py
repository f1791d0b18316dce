# SPDX-License-Identifier: Apache-2.0
"""A guest behind sshd: answers every command honestly but for the one that its mode spoils.

sshd runs it as its ForceCommand, by an interpreter without site packages. It runs nothing of
what it is asked to. Argument: the folder with `mode.json` (what is spoilt, and the actions
to play then) and a file for each honest answer.
"""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
PIECE = b"A" * (1 << 16)


def say(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def flood(*streams: int) -> None:
    while True:
        for stream in streams:
            say(stream, PIECE)


def drip(stream: int, data: bytes) -> None:
    """A byte a second, for ever."""
    for byte in data or b"A":
        say(stream, bytes([byte]))
        time.sleep(1)
    drip(stream, data)


def leave_child() -> None:
    """A process that heeds no signal and keeps both streams."""
    if os.fork() == 0:
        ignore_signals()
        time.sleep(3600)


def drop_connection() -> None:
    """Kill the sshd that serves this connection, so that TCP ends in mid-word."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


def ignore_signals(*_nothing: object) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


ACTIONS: dict[str, Callable[[Any], object]] = {
    "out": lambda text: say(1, text.encode("utf-8", "surrogateescape")),
    "err": lambda text: say(2, text.encode("utf-8", "surrogateescape")),
    "file": lambda name: say(1, (FOLDER / name).read_bytes()),
    "flood": lambda streams: flood(*streams),
    "drip": lambda text: drip(1, text.encode()),
    "sleep": lambda _: time.sleep(3600),
    "deaf": ignore_signals,
    "close": lambda streams: [os.close(stream) for stream in streams],
    "child": lambda _: leave_child(),
    "drop": lambda _: drop_connection(),
    "signal": lambda number: os.kill(os.getpid(), number),
    "exit": os._exit,
}
"""The steps of a mode, by name."""


def main() -> None:
    mode = json.loads((FOLDER / "mode.json").read_text())
    words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    with (FOLDER / "environment").open("a") as seen:
        seen.write(json.dumps(dict(os.environ)) + "\n")
    text = " ".join(words)
    what = next((name for sign, name in mode["signs"].items() if sign in text), "")
    telling = "echo $$" in text
    spoilt = telling and mode["at"] in {what, "any"}
    if telling and not (spoilt and mode["mute"]):
        say(2, b"%d\n" % os.getpid())
    if spoilt:
        for action, value in mode["actions"]:
            ACTIONS[action](value)
        os._exit(0)
    answer = FOLDER / what
    if what and answer.is_file():
        say(1, answer.read_bytes())


main()
