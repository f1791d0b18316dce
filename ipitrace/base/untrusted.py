# SPDX-License-Identifier: Apache-2.0
"""Untrusted files and JSON: bounded before they are read, and checked afterwards."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ipitrace.base.units import MIB

MOST_JSON_ITEMS: Final = 600_000
"""Values, arrays and objects of one JSON text: at most 100 bytes of memory each, measured."""

_MOST_DEPTH: Final = 32  # of nested arrays and objects; run.json has 7
_LONGEST_TEXT: Final = 16_384  # characters; the kernel's command line has 2048 at most on x86
_LONGEST_KEY: Final = 256
_NO_NUMBER: Final = "it holds a number that is out of range"
_MOST_DIGITS: Final = 21  # and a sign, of 2^64
_TOO_LARGE: Final = 1 << 64  # larger than any 64-bit counter, signed or unsigned


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    A FIFO or a device is not opened for reading, and a file that grows is read only once.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or has more than `most_bytes`.
    """
    with open_regular(path, most_bytes) as file:
        content: bytes = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise _too_large(most_bytes)
    return content


def open_regular(path: Path, most_bytes: int) -> Any:  # noqa: ANN401 - a raw binary file
    """Open a regular file for reading; raises as read_bounded()."""
    # open(2): with O_NONBLOCK, opening a FIFO does not wait for a writer.
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
    """Parse JSON and reject values that programs cannot handle or print.

    RFC 8259 leaves open the range of a number, the meaning of a duplicate key, and whether a
    string may contain half of a surrogate pair. Here these are errors, as are NaN and Infinity.

    Args:
        content: the text as it was received. The caller bounds its length.
        longest_text: the most characters of one string.

    Raises:
        ValueError: the text is not valid here; the message names the reason.
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
        raise ValueError(f"it is not valid JSON at line {error.lineno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value, longest_text)
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # the time of a conversion grows with the square of the length
        raise ValueError(_NO_NUMBER)
    return int(digits)


def _no_constant(_name: str) -> None:
    """NaN and the infinities are errors."""
    raise ValueError(_NO_NUMBER)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("it holds a key twice in one object")
    for key in made:
        if len(key) > _LONGEST_KEY or not key.isprintable():
            raise ValueError("it holds a key that is not a name")
    return made


def _check(value: object, longest_text: int) -> None:
    """Check every value without recursion, one level after the other."""
    level = [value]
    for _depth in range(_MOST_DEPTH + 1):
        level = [inner for outer in level for inner in _checked(outer, longest_text)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _checked(value: object, longest_text: int) -> Iterator[object]:
    """Check one value, and return the values inside it."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, str):
        if len(value) > longest_text:
            raise ValueError(f"it holds a text of more than {longest_text} characters")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("it holds a text that is not Unicode")
    elif isinstance(value, int | float) and not abs(value) < _TOO_LARGE:  # includes NaN
        raise ValueError(_NO_NUMBER)
