# SPDX-License-Identifier: Apache-2.0
"""Handling of Ctrl-C, SIGTERM and SIGHUP. Each of the three requests an orderly end.

The first signal interrupts the command, and completed repetitions are kept. The second signal
cancels the remaining work of the first, and incomplete files are removed. Further signals are
ignored, so that the removal is completed; only SIGKILL stops it. A signal that was ignored when
ipitrace was started (nohup, or SIGINT of a background job) stays ignored.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST: Final = 2  # number of signals that raise an exception
_AGAIN_S: Final = 0.05


class StopRequest:
    """An event that a signal handler sets and that the interrupted thread waits for.

    threading.Event takes a lock in set() and in wait(), and can therefore deadlock here.
    """

    def __init__(self) -> None:
        """stop_event() creates one and closes it."""
        self._requested = False
        self._read_fd, self._write_fd = os.pipe()

    def set(self) -> None:
        """Request the stop. Further calls have no effect."""
        if not self._requested:
            self._requested = True
            os.write(self._write_fd, b"\0")

    def is_set(self) -> bool:
        """Whether the stop was requested."""
        return self._requested

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the request; return whether the stop was requested."""
        poll = select.poll()  # select(2) does not support descriptors from 1024 on
        poll.register(self._read_fd, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self._requested

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)
        os.close(self._write_fd)


class _Requests:
    """The number of signals that arrived, and what the main thread is doing."""

    count = 0
    last = signal.SIGINT
    finishing = False
    held = 0
    waiting = False
    stop: StopRequest | None = None


_requests = _Requests()


def install() -> None:
    """From now on the signals raise KeyboardInterrupt in the main thread; see above."""
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def ignore() -> None:
    """Ignore all further signals. The process is about to exit."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def finish_undisturbed() -> None:
    """The remaining work takes a bounded time and saves results: ignore a first signal."""
    _requests.finishing = True


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer interruptions: a signal that arrives inside raises KeyboardInterrupt at the end.

    For work that takes a bounded time and must not be interrupted, such as changing a library's
    state or joining threads. It can be used as a decorator. Threads other than the main thread
    are never interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests.held += 1
    try:
        yield
    finally:
        _requests.held -= 1
        if _requests.waiting and not _requests.held:
            _requests.waiting = False
            raise KeyboardInterrupt


def interrupted_twice() -> bool:
    """Whether a second signal arrived, which cancels the remaining work."""
    return _requests.count >= _LAST


@contextlib.contextmanager
def stop_event() -> Iterator[StopRequest]:
    """An event that the first signal sets instead of raising, so that a display is completed."""
    stop = StopRequest()
    _requests.stop = stop
    try:
        yield stop
    finally:
        _requests.stop = None
        stop.close()


def send_again() -> None:
    """Send the last signal again: Python lost the exception inside a callback from C.

    It raises again, also if further signals have arrived since then and were ignored.
    """
    _requests.count = min(_requests.count, _LAST) - 1
    to_main = (threading.main_thread().ident, _requests.last)
    again = threading.Timer(_AGAIN_S, signal.pthread_kill, to_main)
    again.daemon = True
    again.start()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _requests.count += 1
    _requests.last = signal.Signals(number)
    first = _requests.count == 1
    if first and _requests.stop is not None:
        _requests.stop.set()
    elif _requests.count <= _LAST and not (first and _requests.finishing):
        if not _requests.held:
            raise KeyboardInterrupt
        _requests.waiting = True
