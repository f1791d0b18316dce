# SPDX-License-Identifier: Apache-2.0
"""JSON that a guest made: parsed strictly, and taken apart by type."""

import json
from typing import Any, NoReturn, TypeVar

from ipitrace.foreign import plain

T = TypeVar("T")
_SHOWN_CHARS = 40


def parse_json(text: bytes) -> object:
    """What `text` says; its length is the caller's to bound.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number that none is.
    """
    try:
        parsed: object = json.loads(text.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return parsed


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def checked(value: object, kind: type[T], what: str) -> T:
    """`value`, which must be of the type `kind`; a truth value is no number.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    return value


def member(value: object, name: str, kind: type[T]) -> T:
    """The member `name` of the object `value`.

    Raises:
        ValueError: `value` is no object, or has no such member of that type.
    """
    members: dict[Any, Any] = checked(value, dict, "it")
    if name not in members:
        raise ValueError(f"'{name}' is missing")
    return checked(members[name], kind, f"'{name}'")


def number(value: object, name: str, least: int, most: int) -> int:
    """The member `name` of the object `value`, a whole number from `least` to `most`.

    Raises:
        ValueError: it is not.
    """
    found = member(value, name, int)
    if not least <= found <= most:
        raise ValueError(f"'{name}' is not {least} to {most}")
    return found


def shown(text: bytes) -> str:
    """The start of `text`, for a message."""
    return f"'{plain(text[: 4 * _SHOWN_CHARS].decode(errors='replace'), _SHOWN_CHARS)}'"
