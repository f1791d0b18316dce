# SPDX-License-Identifier: Apache-2.0
"""Into a guest by QEMU's guest agent: no network, no login, and root by nature.

Commands are those of QEMU's qga/qapi-schema.json. What a program prints goes to files in
the guest and is read from there in pieces: guest-exec itself hands back 16 MiB at most.
"""

import base64
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipitrace.errors import HostError
from ipitrace.storm.agent import Agent
from ipitrace.storm.shell import QUICK_S, TICK_S, Finished, Shell, timed_out

_PIECE: Final = 1 << 20  # of a file; its base64 is well below libvirt's limit of 4 MiB
_FIRST_LOOK_S: Final = 0.05
_LOOK_S: Final = 1.0  # each look wakes the guest: the longer the storm, the fewer a second
_LINGER_S: Final = 5.0
# The agent's own environment may have no PATH with sbin.
_SCRIPT: Final = (
    'PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; d=$1; shift; exec "$@" >"$d/out" 2>"$d/err"'
)
_FROM_FILE: Final = 'exec <"$1/in"; rm "$1/in"; '
_APPEND: Final = 'cat >>"$1/in"'
# libvirt (11.3 seen) never ends sending what does not fit a socket's buffer, some 200 KiB.
_MOST_INPUT: Final = 48 << 10


@dataclass(frozen=True)
class QgaShell:
    """An agent that answers; made by open_qga().

    Attributes:
        folder: in the guest, private, for what programs print.
    """

    agent: Agent
    folder: str

    @property
    def via(self) -> str:
        """As Shell.via."""
        return self.agent.via

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        tick: Callable[[], None] = lambda: None,
    ) -> Finished:
        """As Shell.run."""
        script = _SCRIPT
        if len(stdin) > _MOST_INPUT:
            for at in range(0, len(stdin), _MOST_INPUT):
                append = ["sh", "-c", _APPEND, "sh", self.folder]
                _small(self.agent, append, stdin=stdin[at : at + _MOST_INPUT])
            script, stdin = _FROM_FILE + _SCRIPT, b""
        pid = _start(self.agent, ["sh", "-c", script, "sh", self.folder, *command], stdin=stdin)
        try:
            ended = self._wait(pid, command, timeout_s, tick)
        except BaseException:
            with contextlib.suppress(HostError):
                self._end(pid)
            raise
        if "exitcode" not in ended:
            raise HostError(
                f"'{shlex.join(command)}' was killed by signal {ended.get('signal')} in the guest.",
                "See the guest's dmesg.",
            )
        stderr = self._read("err").decode(errors="replace").strip()
        return Finished(int(ended["exitcode"]), self._read("out"), stderr)

    def _wait(
        self, pid: int, command: Sequence[str], timeout_s: float, tick: Callable[[], None]
    ) -> dict[str, Any]:
        started_s = time.monotonic()
        pause_s = _FIRST_LOOK_S
        while True:
            look_s = time.monotonic() + pause_s
            while time.monotonic() < look_s:
                tick()
                time.sleep(TICK_S)
            pause_s = min(2 * pause_s, _LOOK_S)
            status: dict[str, Any] = self.agent.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                return status
            if time.monotonic() - started_s > timeout_s:
                raise timed_out(command, timeout_s)

    def _end(self, pid: int) -> None:
        """Kill a program in the guest, and let the agent forget it."""
        killer = _start(self.agent, ["kill", str(pid)])
        until_s = time.monotonic() + _LINGER_S
        left = {pid, killer}
        while left and time.monotonic() < until_s:
            time.sleep(TICK_S)
            left = {p for p in left if not self.agent.ask("guest-exec-status", pid=p)["exited"]}

    def _read(self, name: str) -> bytes:
        handle = self.agent.ask("guest-file-open", path=f"{self.folder}/{name}", mode="r")
        parts = []
        try:
            while True:
                part = self.agent.ask("guest-file-read", handle=handle, count=_PIECE)
                parts.append(base64.b64decode(part["buf-b64"]))
                if part["eof"] or not part["count"]:
                    return b"".join(parts)
        finally:
            self.agent.ask("guest-file-close", handle=handle)


@contextlib.contextmanager
def open_qga(agent: Agent) -> Iterator[Shell]:
    """Use an agent that answers; leaves nothing in the guest.

    Raises:
        HostError: it forbids what is needed.
    """
    made = _small(agent, ["mktemp", "-d", "/tmp/ipitrace.XXXXXXXXXX"])  # noqa: S108
    try:
        yield QgaShell(agent, made)
    finally:
        with contextlib.suppress(HostError):  # the guest may be gone
            _small(agent, ["rm", "-rf", made])


def _start(agent: Agent, command: Sequence[str], *, stdin: bytes = b"", keep: bool = False) -> int:
    """Start a program; its process id in the guest."""
    more = {"input-data": base64.b64encode(stdin).decode()} if stdin else {}
    answer = agent.ask(
        "guest-exec",
        **{"path": command[0], "arg": list(command[1:]), "capture-output": keep, **more},
    )
    return int(answer["pid"])


def _small(agent: Agent, command: Sequence[str], *, stdin: bytes = b"") -> str:
    """Run a program that prints a line at most; that line."""
    pid = _start(agent, command, stdin=stdin, keep=True)
    until_s = time.monotonic() + QUICK_S
    while time.monotonic() < until_s:
        time.sleep(TICK_S)
        status = agent.ask("guest-exec-status", pid=pid)
        if status["exited"]:
            if status.get("exitcode") != 0:
                error = base64.b64decode(status.get("err-data", "")).decode(errors="replace")
                raise HostError(
                    f"'{shlex.join(command)}' failed in the guest: {error.strip()}",
                    "The guest agent may be confined (SELinux): see docs/guests.md.",
                )
            return base64.b64decode(status.get("out-data", "")).decode().strip()
    raise timed_out(command, QUICK_S)
