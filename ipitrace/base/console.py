# SPDX-License-Identifier: Apache-2.0
"""The one door to standard output and standard error.

Nothing goes out but printable characters, line feeds and what redraw() adds of our own: so
no renderer can let a stranger's escape sequence reach a terminal. Everything is flushed at
once, so that an error is known here and not when Python exits (with code 120).
"""

import contextlib
import os
import select
import sys
from typing import Final, TextIO

from ipitrace.base.errors import (
    HostError,
    ReaderLeftError,
)
from ipitrace.base.foreign import (
    plain,
    plain_json,
    plain_lines,
)

PIPE_WIDTH: Final = 100
"""Columns of text that goes anywhere but to a terminal."""

_LEAST_WIDTH: Final = 80  # what tables are laid out for where a terminal has less, or does not say
_CLEAR_LINE: Final = "\r\x1b[K"  # ECMA-48: carriage return, erase to the end of the line


def say(text: str, *, end: str = "\n") -> None:
    """Write to standard output.

    Raises:
        ReaderLeftError: whoever read it has left.
        HostError: it cannot be written.
    """
    _to_output(plain_lines(text + end))


def say_json(document: str, *, end: str = "") -> None:
    """Write a JSON document, ours or a stranger's, to standard output.

    Raises:
        ReaderLeftError, HostError: see say().
    """
    _to_output(plain_json(document + end))


def tell(text: str) -> None:
    """Write a line to standard error; where that cannot be written there is no one to tell."""
    _try_error(plain_lines(text) + "\n")


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    try:
        return sys.stdout.isatty()
    except ValueError:  # closed
        return False


def output_width() -> int:
    """Columns that text on standard output is laid out for: the terminal's, at least 80."""
    if not on_terminal():
        return PIPE_WIDTH
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, _LEAST_WIDTH)
    except (OSError, ValueError):  # no file of the system's
        return PIPE_WIDTH


def redraw(line: str, stream: TextIO | None = None) -> None:
    """Write `line` over the terminal's current line, on standard error unless told else."""
    _try_error(_CLEAR_LINE + plain(line), stream)


def reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more (poll(2), POLLERR)."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _fd, event in poll.poll(0))


def settle() -> None:
    """See that nothing is left that Python would fail to write when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop(stream)


def _to_output(text: str) -> None:
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        _drop(sys.stdout)
        raise ReaderLeftError from None
    except OSError as error:
        _drop(sys.stdout)
        raise HostError(
            f"Standard output cannot be written: {error.strerror or error}.",
            "Free space, or write elsewhere.",
        ) from error


def _try_error(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stderr
    try:
        _write(stream, text)
    except OSError:
        _drop(stream)


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _drop(stream: TextIO) -> None:
    """Let what is buffered go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
