# SPDX-License-Identifier: Apache-2.0
"""Transport through QEMU's guest agent: it needs no network and no login, and runs as root.

The commands are defined in QEMU's qga/qapi-schema.json. A program's output goes to files in the
guest, which are read in pieces: guest-exec itself returns 16 MiB at most.
"""

import base64
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.storm import limits
from ipitrace.storm.guest_json import checked, member, number
from ipitrace.storm.transport.agent import Agent, unknown_answer
from ipitrace.storm.transport.shell import QUICK_S, TICK_S, Finished, Shell, timed_out

T = TypeVar("T")
_FIRST_POLL_S: Final = 0.05
_POLL_S: Final = 1.0  # each poll wakes the guest; long storms are polled less often
_LINGER_S: Final = 5.0
# The PATH of the agent's environment may lack sbin.
_SCRIPT: Final = (
    'PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; d=$1; shift; exec "$@" >"$d/out" 2>"$d/err"'
)
_FROM_FILE: Final = 'exec <"$1/in"; rm "$1/in"; '
_APPEND: Final = 'cat >>"$1/in"'
# libvirt (observed: 11.3) never finishes sending more than a socket's buffer, some 200 KiB.
_MOST_INPUT: Final = 48 << 10
_MOST_PID: Final = 1 << 22  # PID_MAX_LIMIT, see proc(5)
_MOST_HANDLE: Final = (1 << 63) - 1
_FOLDER: Final = "/tmp/ipitrace."  # noqa: S108 - in the guest, made by mktemp
_FOLDER_CHARS: Final = len(_FOLDER) + 10


@dataclass(frozen=True)
class _Ended:
    """A program in the guest that exited, or was killed by a signal.

    Attributes:
        out, err: its output, if it was captured.
    """

    exitcode: int | None
    signal: int | None
    out: bytes
    err: bytes


@dataclass(frozen=True)
class QgaShell:
    """The transport through an agent that answers; created by open_qga().

    Attributes:
        folder: a private folder in the guest for the output of programs.
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
        tick: Callable[[], float | None] = lambda: None,
        limit_bytes: int = limits.TEXT_BYTES,
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
        if ended.exitcode is None:
            raise HostError(
                f"'{shlex.join(command)}' was killed by signal {ended.signal} in the guest.",
                "See the guest's dmesg.",
            )
        deadline_s = time.monotonic() + limits.TRANSFER_S
        stderr = self._read("err", limits.STDERR_BYTES, deadline_s)
        stdout = self._read("out", limit_bytes + 1, deadline_s)
        if len(stdout) > limit_bytes:
            raise HostError(
                f"'{shlex.join(command[-3:])}' printed more than {limit_bytes} bytes in the guest.",
                "Check what it prints there.",
            )
        return Finished(ended.exitcode, stdout, stderr.decode(errors="replace").strip())

    def _wait(
        self, pid: int, command: Sequence[str], timeout_s: float, tick: Callable[[], float | None]
    ) -> _Ended:
        started_s = time.monotonic()
        pause_s = _FIRST_POLL_S
        while True:
            poll_s = time.monotonic() + pause_s
            while time.monotonic() < poll_s:
                time.sleep(tick() or TICK_S)
            pause_s = min(2 * pause_s, _POLL_S)
            ended = _ended(self.agent, pid)
            if ended is not None:
                return ended
            if time.monotonic() - started_s > timeout_s:
                raise timed_out(command, timeout_s)

    def _end(self, pid: int) -> None:
        """Kill a program in the guest, and fetch its status so that the agent frees it."""
        killer = _start(self.agent, ["kill", str(pid)])
        until_s = time.monotonic() + _LINGER_S
        left = {pid, killer}
        while left and time.monotonic() < until_s:
            time.sleep(TICK_S)
            left = {p for p in left if _ended(self.agent, p) is None}

    def _read(self, name: str, most_bytes: int, deadline_s: float) -> bytes:
        """The first `most_bytes` of a file in the folder."""
        path = f"{self.folder}/{name}"
        handle = _ask(self.agent, "guest-file-open", _handle, path=path, mode="r")
        parts: list[bytes] = []
        left = most_bytes
        try:
            while left:
                if time.monotonic() > deadline_s:
                    raise HostError(
                        f"{path} was not received from the guest within {limits.TRANSFER_S:.0f} s.",
                        "Check whether the guest gets CPU time.",
                    )
                count = min(left, limits.PIECE_BYTES)
                part, last = _ask(
                    self.agent, "guest-file-read", _part_of(count), handle=handle, count=count
                )
                parts.append(part)
                left -= len(part)
                if last:
                    break
        finally:
            with contextlib.suppress(HostError):  # makes the agent free the handle
                self.agent.ask("guest-file-close", handle=handle)
        return b"".join(parts)


@contextlib.contextmanager
def open_qga(agent: Agent) -> Iterator[Shell]:
    """Use an agent that answers; all files in the guest are removed at the end.

    Raises:
        HostError: the agent forbids a command that is needed.
    """
    made = _small(agent, ["mktemp", "-d", f"{_FOLDER}XXXXXXXXXX"])
    if not made.startswith(_FOLDER) or len(made) != _FOLDER_CHARS or not made.isprintable():
        raise unknown_answer("guest-exec-status", ValueError("mktemp created no folder"))
    try:
        yield QgaShell(agent, made)
    finally:
        with contextlib.suppress(HostError):  # the guest may have ended
            _small(agent, ["rm", "-rf", made])


def _ask(agent: Agent, command: str, parse: Callable[[object], T], **arguments: object) -> T:
    """The result of `parse` for the agent's answer; it raises ValueError if it is not valid."""
    try:
        return parse(agent.ask(command, **arguments))
    except ValueError as error:
        raise unknown_answer(command, error) from error


def _start(agent: Agent, command: Sequence[str], *, stdin: bytes = b"", keep: bool = False) -> int:
    """Start a program in the guest; returns its process id there."""
    more = {"input-data": base64.b64encode(stdin).decode()} if stdin else {}
    return _ask(
        agent,
        "guest-exec",
        lambda answer: number(answer, "pid", 1, _MOST_PID),
        **{"path": command[0], "arg": list(command[1:]), "capture-output": keep, **more},
    )


def _ended(agent: Agent, pid: int) -> _Ended | None:
    """How a program ended; None while it runs."""
    return _ask(agent, "guest-exec-status", _end_of, pid=pid)


def _end_of(answer: object) -> _Ended | None:
    if not member(answer, "exited", bool):
        return None
    members = checked(answer, dict, "it")
    killed = "exitcode" not in members
    return _Ended(
        exitcode=None if killed else number(answer, "exitcode", 0, 255),
        signal=number(answer, "signal", 1, 64) if killed else None,
        out=_decoded(answer, "out-data") if "out-data" in members else b"",
        err=_decoded(answer, "err-data") if "err-data" in members else b"",
    )


def _handle(answer: object) -> int:
    handle = checked(answer, int, "it")
    if not 0 <= handle <= _MOST_HANDLE:
        raise ValueError("it is not a handle")
    return handle


def _part_of(count: int) -> Callable[[object], tuple[bytes, bool]]:
    """A parser for the answer to a read of `count` bytes: the bytes, and whether it was all."""

    def parse(answer: object) -> tuple[bytes, bool]:
        announced = number(answer, "count", 0, count)
        data = _decoded(answer, "buf-b64")
        if len(data) != announced:
            raise ValueError(f"'buf-b64' has {len(data)} bytes, not {announced}")
        return data, member(answer, "eof", bool) or not data

    return parse


def _decoded(answer: object, name: str) -> bytes:
    return base64.b64decode(member(answer, name, str), validate=True)


def _small(agent: Agent, command: Sequence[str], *, stdin: bytes = b"") -> str:
    """Run a program that prints at most one line, and return the line."""
    pid = _start(agent, command, stdin=stdin, keep=True)
    until_s = time.monotonic() + QUICK_S
    while time.monotonic() < until_s:
        time.sleep(TICK_S)
        ended = _ended(agent, pid)
        if ended is None:
            continue
        if ended.exitcode != 0:
            error = plain(ended.err.decode(errors="replace").strip())
            raise HostError(
                f"'{shlex.join(command)}' failed in the guest: {error}",
                "The guest agent may be confined (SELinux): see docs/guests.md.",
            )
        return ended.out.decode(errors="replace").strip()
    raise timed_out(command, QUICK_S)
