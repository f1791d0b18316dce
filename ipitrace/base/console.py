# SPDX-License-Identifier: Apache-2.0
"""The only module that writes to standard output and standard error.

It writes only printable characters, line feeds and the control sequence that redraw() adds. A
renderer can therefore not pass an escape sequence of foreign text to a terminal. Every write is
flushed immediately. A write error is then raised here and not when Python exits (with code 120).
"""

import contextlib
import os
import re
import select
import sys
from enum import StrEnum
from typing import Final, TextIO

from ipitrace.base.errors import HostError, ReaderLeftError
from ipitrace.base.foreign import plain, plain_json, plain_lines

PIPE_WIDTH: Final = 100
"""Width, in columns, of text that is written to anything but a terminal."""


class Style(StrEnum):
    """How styled() text looks: legible on dark and on light terminals."""

    STRONG = "\x01"
    NOTE = "\x02"
    DOUBT = "\x03"


_PLAIN: Final = "\x04"
_SGR: Final = {Style.STRONG: "1", Style.NOTE: "35", Style.DOUBT: "1;31", _PLAIN: "0"}
_MARK: Final = re.compile("([\x01-\x04])")
_LEAST_WIDTH: Final = 80  # table width on a terminal that is narrower or reports no width
_CLEAR_LINE: Final = "\r\x1b[K"  # ECMA-48: carriage return, erase to the end of the line


def say(text: str, *, end: str = "\n") -> None:
    """Write to standard output.

    Raises:
            ReaderLeftError: the reader of standard output has closed it.
            HostError: standard output cannot be written.
    """
    _to_output(plain_lines(text + end))


def say_styled(text: str, *, end: str = "\n") -> None:
    """As say(), for text with the marks of styled(); only a terminal shows them.

    Raises:
        ReaderLeftError, HostError: see say().
    """
    show = on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    parts = _MARK.split(text + end)
    _to_output(
        "".join(
            _sequence(part, show=show) if _MARK.fullmatch(part) else plain_lines(part)
            for part in parts
        )
    )


def styled(text: str, style: Style) -> str:
    """The text between marks that say_styled() replaces by control sequences."""
    return f"{style}{text}{_PLAIN}" if text else ""


def unstyled(text: str) -> str:
    """The text without marks of styled()."""
    return _MARK.sub("", text)


def _sequence(mark: str, *, show: bool) -> str:
    return f"\x1b[{_SGR[mark]}m" if show else ""


def writes_unicode() -> bool:
    """Whether standard output can write characters beyond ASCII."""
    try:
        return "utf" in (sys.stdout.encoding or "").lower()
    except ValueError:  # closed
        return False


def say_json(document: str, *, end: str = "") -> None:
    """Write a JSON document, written by ipitrace or by another program, to standard output.

    Raises:
        ReaderLeftError, HostError: see say().
    """
    _to_output(plain_json(document + end))


def tell(text: str) -> None:
    """Write a line to standard error. A failure of this write is ignored."""
    _try_error(plain_lines(text) + "\n")


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    try:
        return sys.stdout.isatty()
    except ValueError:  # closed
        return False


def output_width() -> int:
    """Width, in columns, for text on standard output: the terminal's width, at least 80."""
    if not on_terminal():
        return PIPE_WIDTH
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, _LEAST_WIDTH)
    except (OSError, ValueError):  # stdout is not a file of the operating system
        return PIPE_WIDTH


def redraw(line: str, stream: TextIO | None = None) -> None:
    """Replace the terminal's current line by `line`. The default stream is standard error."""
    _try_error(_CLEAR_LINE + plain(line), stream)


def reader_left() -> bool:
    """Whether standard output is a pipe without a reader (poll(2), POLLERR)."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _fd, event in poll.poll(0))


def settle() -> None:
    """Flush both streams and discard what cannot be written, so that Python's exit succeeds."""
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
            "Free space, or redirect the output to another file.",
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
    """Discard the stream's buffered text."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
        stream.flush()
