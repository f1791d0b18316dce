# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and SIGHUP: all three ask for the same, an orderly end.

The first one interrupts, and what is finished is kept. The second one gives up what the
first has left to do, and what is unfinished is removed. Further ones are ignored, so that
nothing is left half removed; SIGKILL ends that, too. A signal that was ignored when ipitrace
was started (nohup, or SIGINT of a background job) stays ignored.
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
_LAST: Final = 2  # that raises anything
_AGAIN_S: Final = 0.05


class StopRequest:
    """Set in a signal's handler, and waited for by the thread that the handler interrupts.

    threading.Event takes a lock in both, and so may wait for itself.
    """

    def __init__(self) -> None:
        """A context manager closes it; see stop_event()."""
        self._asked = False
        self._reads, self._writes = os.pipe()

    def set(self) -> None:
        """Stop; once."""
        if not self._asked:
            self._asked = True
            os.write(self._writes, b"\0")

    def is_set(self) -> bool:
        """Whether that was asked for."""
        return self._asked

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it is asked for, or so long; whether it was."""
        poll = select.poll()  # select(2) knows no descriptor from 1024 on
        poll.register(self._reads, select.POLLIN)
        poll.poll(timeout_s * 1000)
        return self._asked

    def close(self) -> None:
        """Nobody waits for it any more."""
        os.close(self._reads)
        os.close(self._writes)


class _Requests:
    """How often an end was asked for, and what is being done meanwhile."""

    count = 0
    last = signal.SIGINT
    finishing = False
    held = 0
    waiting = False
    stop: StopRequest | None = None


_requests = _Requests()


def install() -> None:
    """From now on the signals raise KeyboardInterrupt in the main thread, as said above."""
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def ignore() -> None:
    """All is done but leaving: whatever comes now changes nothing."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def finish_undisturbed() -> None:
    """What is left takes a bounded time and saves what was done: a first signal changes nothing."""
    _requests.finishing = True


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Inside, nothing is interrupted; what came meanwhile interrupts when it is over.

    For what takes a bounded time and must not be left half done: a library's own state,
    threads to be ended. Serves as a decorator, too. Threads other than the main one are never
    interrupted.
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
    """Whether an end was asked for so urgently that nothing more was to be finished."""
    return _requests.count >= _LAST


@contextlib.contextmanager
def stop_event() -> Iterator[StopRequest]:
    """Set by the first signal instead of an exception, so that no display is left half done."""
    stop = StopRequest()
    _requests.stop = stop
    try:
        yield stop
    finally:
        _requests.stop = None
        stop.close()


def send_again() -> None:
    """Deliver an interruption again that Python lost, since a callback from C was running."""
    _requests.count -= 1
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
