# SPDX-License-Identifier: Apache-2.0
"""Files and JSON that anybody may have written: bounded before they are read, plain after it."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ipitrace.base.units import MIB

MOST_JSON_ITEMS: Final = 600_000
"""Values, arrays and objects of one JSON text: 100 bytes each, measured, at the worst."""

_MOST_DEPTH: Final = 32  # of nested arrays and objects; run.json has 7
_LONGEST_TEXT: Final = 16_384  # characters; the kernel's command line has 2048 at most on x86
_LONGEST_KEY: Final = 256
_NO_NUMBER: Final = "it holds a number that cannot be"
_MOST_DIGITS: Final = 21  # and a sign, of 2^64
_TOO_LARGE: Final = 1 << 64  # what no 64-bit counter, signed or not, can hold


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A regular file's content.

    A FIFO or a device is never waited for, and a file that grows is not followed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or has more than `most_bytes`.
    """
    with open_regular(path, most_bytes) as file:
        content: bytes = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise _too_large(most_bytes)
    return content


def open_regular(path: Path, most_bytes: int) -> Any:  # noqa: ANN401 - a raw binary file
    """A regular file, open for reading; raises as read_bounded()."""
    # open(2): O_NONBLOCK, since opening a FIFO waits for a writer else.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor), most_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > most_bytes:
        raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> ValueError:
    shown = f"{most_bytes // MIB} MiB" if most_bytes >= MIB else f"{most_bytes // 1024} KiB"
    return ValueError(f"it has more than {shown}")


def parse_json(content: bytes, longest_text: int = _LONGEST_TEXT) -> Any:  # noqa: ANN401 - JSON is
    """JSON that programs can calculate with and print.

    RFC 8259 leaves open what a number's range is, what a key given twice means, and whether
    a string may hold half of a surrogate pair; here these are errors, as NaN and Infinity.

    Args:
        content: as it came; its length is the caller's to bound.
        longest_text: characters of one string.

    Raises:
        ValueError: it is no such JSON; the message says in a few words what is wrong.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_JSON_ITEMS:
        raise ValueError(f"it has more than {MOST_JSON_ITEMS} values")
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON at line {error.lineno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value, longest_text)
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # to convert them takes time that grows with their square
        raise ValueError(_NO_NUMBER)
    return int(digits)


def _no_constant(_name: str) -> None:
    """NaN and the infinities."""
    raise ValueError(_NO_NUMBER)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("it holds a key twice in one object")
    for key in made:
        if len(key) > _LONGEST_KEY or not key.isprintable():
            raise ValueError("it holds a key that is no name")
    return made


def _check(value: object, longest_text: int) -> None:
    """Look at every value, without recursion: one level after the other."""
    level = [value]
    for _depth in range(_MOST_DEPTH + 1):
        level = [inner for outer in level for inner in _checked(outer, longest_text)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _checked(value: object, longest_text: int) -> Iterator[object]:
    """What is inside of a value that may be used."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, str):
        if len(value) > longest_text:
            raise ValueError(f"it holds a text of more than {longest_text} characters")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("it holds a text that is not Unicode")
    elif isinstance(value, int | float) and not abs(value) < _TOO_LARGE:  # NaN neither
        raise ValueError(_NO_NUMBER)
