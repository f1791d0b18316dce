# SPDX-License-Identifier: Apache-2.0
"""What every way into a guest can do: run a program there, as root."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final, Protocol

from ipitrace.errors import HostError
from ipitrace.storm.limits import TEXT_BYTES

TICK_S: Final = 0.02
QUICK_S: Final = 30.0
"""Enough for anything but a storm or a build, on a busy guest under emulation, too."""

_DYING_S: Final = 3.0


@dataclass(frozen=True)
class Finished:
    """A program that ended; `stderr` without the white space around it."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Its stdout as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()


def _nothing() -> None:
    """Is called meanwhile unless something else is."""


class Shell(Protocol):
    """One way into one guest."""

    @property
    def via(self) -> str:
        """`ssh`, `qga`, `qga+libvirt` or `local`."""

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        tick: Callable[[], None] = _nothing,
        limit_bytes: int = TEXT_BYTES,
    ) -> Finished:
        """Run `command` in the guest as root and wait for its end.

        `tick` is called every 20 ms or so. When it raises, the command is ended.

        Raises:
            HostError: the guest cannot be reached any more, the command took longer than
                `timeout_s`, or it printed more than `limit_bytes` on its stdout; it was ended
                then as far as that was possible.
        """


def run_here(
    command: Sequence[str],
    *,
    stdin: bytes,
    timeout_s: float,
    tick: Callable[[], None],
    give_up: Callable[[str], None] = lambda _stderr: None,
) -> Finished:
    """Run a program of this machine; `give_up` gets its stderr before it is ended early.

    Raises:
        HostError: there is no such program, or it took too long.
    """
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise HostError(
                f"{command[0]} cannot be started: {error.strerror}.", "See that it is installed."
            ) from error
        try:
            _wait(process, command, timeout_s, tick)
        except BaseException:
            if process.poll() is None:
                give_up(_text_of(err))
                _end(process)
            raise
        return Finished(process.returncode, _bytes_of(out), _text_of(err))


def _wait(
    process: "subprocess.Popen[bytes]",
    command: Sequence[str],
    timeout_s: float,
    tick: Callable[[], None],
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None:
        if time.monotonic() > deadline_s:
            raise timed_out(command, timeout_s)
        tick()
        time.sleep(TICK_S)


def timed_out(command: Sequence[str], timeout_s: float) -> HostError:
    """The error for a command that did not end."""
    return HostError(
        f"'{' '.join(command[-3:])}' did not end within {timeout_s:.0f} s.",
        "See whether the guest still runs, and what its dmesg says.",
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_DYING_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def _bytes_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _text_of(file: IO[bytes]) -> str:
    return _bytes_of(file).decode(errors="replace").strip()
