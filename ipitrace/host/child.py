# SPDX-License-Identifier: Apache-2.0
"""Run other programs, with limits on the amount of output and on the time.

The program runs under a guard (guard.py). If this process ends in any way, the guard kills the
program and all processes in its process group.
"""

import contextlib
import io
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.base.units import MIB
from ipitrace.host.programs import clean_environment, find_program

TICK_S: Final = 0.02
STDERR_BYTES: Final = MIB

_GUARD: Final = Path(__file__).with_name("guard.py")
_KILL_S: Final = 3.0
_DRAIN_S: Final = 1.0  # to read output that is still in a pipe after the program has ended
_PIECE: Final = 1 << 16  # the capacity of a pipe (pipe(7))


@dataclass(frozen=True)
class Finished:
    """A program that has ended. `stderr` has no surrounding white space."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """The output on stdout as text, without surrounding white space."""
        return self.stdout.decode(errors="replace").strip()


class TooMuchError(HostError):
    """A program printed more than its limit."""


def _nothing() -> None:
    """The default tick: does nothing."""


class Child:
    """A running program with pipes to it. A context manager, which ends the program on exit.

    Attributes:
        out: output that was read and not yet consumed by the caller.
        err: likewise for stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        limit_bytes: int,
        stderr_limit_bytes: int = STDERR_BYTES,
        stdin: bytes = b"",
        stdout: int | None = subprocess.PIPE,
        folder: Path | None = None,
        subject: str = "",
        called: str = "",
    ) -> None:
        """Start the program.

        Args:
            command: the program and its arguments; find_program() looks it up.
            limit_bytes: the limit of its output.
            stderr_limit_bytes: the limit of its output on stderr.
            stdin: its complete standard input.
            stdout: as in subprocess.Popen; by default a pipe that this object reads.
            folder: is created for the program, and removed after its end.
            subject: the subject in error messages; by default the program.
            called: the name of the command in messages; by default its last words.

        Raises:
            HostError: it cannot be started.
        """
        self._subject = subject or f"The program {command[0]}"
        self.called = plain(called or " ".join(command[-3:]), 80)
        self._limits = {"out": limit_bytes, "err": stderr_limit_bytes}
        self._folder = folder
        self.out, self.err = bytearray(), bytearray()
        self._stdin = memoryview(stdin)
        self._selector = selectors.DefaultSelector()
        program = find_program(command[0])
        lifeline, self._lifeline = os.pipe()
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(lifeline), str(folder or "")]
        try:
            self._process = subprocess.Popen(
                [*guard, program, *command[1:]],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=clean_environment(),
                pass_fds=[lifeline],
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._lifeline)
            self._selector.close()
            raise HostError(
                f"{command[0]} cannot be started: {error.strerror}.", "Check that it is installed."
            ) from error
        finally:
            os.close(lifeline)
        self._reads(self._process.stdout, "out")
        self._reads(self._process.stderr, "err")
        if stdin and self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE, "in")

    def _reads(self, pipe: "io.RawIOBase | object | None", name: str) -> None:
        if isinstance(pipe, io.FileIO):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def ended(self) -> bool:
        """Whether the program has ended. Processes that it started may still run.

        The process is not reaped yet, so no other process group can get its number.
        """
        if self._process.returncode is not None:
            return True
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, how) is not None

    def exchange(self, timeout_s: float) -> bool:
        """Read its output and write its input for a while. Returns False if nothing was ready.

        Raises:
            TooMuchError: it printed more than its limit.
        """
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return False
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            (self._feed if key.data == "in" else self._receive)(key)
        return bool(ready)

    def _feed(self, key: selectors.SelectorKey) -> None:
        try:
            written = os.write(key.fd, self._stdin[:_PIECE])
        except BlockingIOError:
            return
        except OSError:  # it has closed its standard input
            written = len(self._stdin)
        self._stdin = self._stdin[written:]
        if not self._stdin:
            self._close(key)

    def _receive(self, key: selectors.SelectorKey) -> None:
        held = self.out if key.data == "out" else self.err
        limit = self._limits[key.data]
        try:
            piece = os.read(key.fd, min(_PIECE, limit + 1 - len(held)))
        except BlockingIOError:
            return
        held += piece
        if not piece:
            self._close(key)
        elif len(held) > limit:
            where = "" if key.data == "out" else " to stderr"
            raise TooMuchError(
                f"{self._subject} sent more than {_size(limit)}{where} "
                f"in answer to '{self.called}'.",
                "The program was ended. Check what it prints there.",
            )

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        if isinstance(key.fileobj, io.FileIO):
            key.fileobj.close()

    def finish(
        self,
        deadline_s: float,
        tick: Callable[[], float | None] = _nothing,
        *,
        pause_s: float = TICK_S,
    ) -> int:
        """Wait for its end. Returns the status as subprocess does.

        `tick` is called repeatedly. It returns the seconds until the next call, or None for
        `pause_s`.

        Raises:
            TimeoutError: it has not ended by `deadline_s` of time.monotonic().
            TooMuchError: it printed more than its limit.
        """
        next_s, wait_s = 0.0, pause_s
        while not self.ended():
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise TimeoutError
            if now_s >= next_s:
                wait_s = tick() or pause_s
                next_s = now_s + wait_s
            self.exchange(wait_s)
        self.send(signal.SIGKILL)  # remaining processes of its process group
        until_s = time.monotonic() + _DRAIN_S
        while self._selector.get_map() and time.monotonic() < until_s:
            self.exchange(TICK_S)
        return self._process.wait()

    def send(self, number: int) -> None:
        """Send a signal to its process group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def end(self, first: int = signal.SIGTERM, grace_s: float = _KILL_S) -> None:
        """End it, by SIGKILL if necessary. Further calls have no effect."""
        for number, limit_s in ((first, grace_s), (signal.SIGKILL, _KILL_S)):
            until_s = time.monotonic() + (0 if self.ended() else limit_s)
            self.send(number)
            while not self.ended() and time.monotonic() < until_s:
                with contextlib.suppress(TooMuchError):
                    self.exchange(TICK_S)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._selector.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def run_bounded(
    command: Sequence[str],
    *,
    timeout_s: float,
    limit_bytes: int,
    stderr_limit_bytes: int = STDERR_BYTES,
    stdin: bytes = b"",
    tick: Callable[[], float | None] = _nothing,
    give_up: Callable[[str], None] = lambda _stderr: None,
    subject: str = "",
    called: str = "",
) -> Finished:
    """Run a program on this machine until it ends.

    Args:
        command: the program and its arguments.
        timeout_s: the limit from start to end.
        limit_bytes: the limit of its output, and of the memory used for it.
        stderr_limit_bytes: likewise for stderr.
        stdin: its complete standard input.
        tick: is called repeatedly; returns the seconds until the next call, or None for 20 ms.
            If it raises, the program is ended.
        give_up: receives the program's stderr before the program is ended early.
        subject: the subject in error messages.
        called: the name of the command in messages.

    Raises:
        HostError: the program does not exist, took too long, or printed too much.
    """
    child = Child(
        command,
        limit_bytes=limit_bytes,
        stderr_limit_bytes=stderr_limit_bytes,
        stdin=stdin,
        subject=subject,
        called=called,
    )
    with child:
        try:
            status = child.finish(time.monotonic() + timeout_s, tick)
        except BaseException as error:
            if not child.ended():
                give_up(_text(child.err))
            if isinstance(error, TimeoutError):
                raise timed_out(child.called, timeout_s) from None
            raise
        return Finished(status, bytes(child.out), _text(child.err))


def timed_out(command: str | Sequence[str], timeout_s: float) -> HostError:
    """The error for a command that did not end in time."""
    called = command if isinstance(command, str) else plain(" ".join(command[-3:]), 80)
    return HostError(
        f"'{called}' did not end within {timeout_s:.0f} s.",
        "Check whether the guest still runs, and what its dmesg prints.",
    )


def _text(raw: bytearray) -> str:
    return raw.decode(errors="replace").strip()


def _size(n_bytes: int) -> str:
    return f"{n_bytes // MIB} MiB" if n_bytes >= MIB else f"{n_bytes >> 10} KiB"
