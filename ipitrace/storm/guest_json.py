# SPDX-License-Identifier: Apache-2.0
"""Typed access to JSON from a guest, after untrusted.parse_json()."""

from typing import Any, TypeVar

from ipitrace.base.foreign import plain

T = TypeVar("T")
_SHOWN_CHARS = 40


def checked(value: object, kind: type[T], what: str) -> T:
    """`value`, which must be of the type `kind`; a boolean is not a number.

    Raises:
        ValueError: `value` has another type.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    return value


def member(value: object, name: str, kind: type[T]) -> T:
    """The member `name` of the object `value`.

    Raises:
            ValueError: `value` is not an object, or has no such member of that type.
    """
    members: dict[Any, Any] = checked(value, dict, "it")
    if name not in members:
        raise ValueError(f"'{name}' is missing")
    return checked(members[name], kind, f"'{name}'")


def number(value: object, name: str, least: int, most: int) -> int:
    """The member `name` of the object `value`, an integer from `least` to `most`.

    Raises:
        ValueError: it is missing, not an integer, or out of range.
    """
    found = member(value, name, int)
    if not least <= found <= most:
        raise ValueError(f"'{name}' is not {least} to {most}")
    return found


def shown(text: bytes) -> str:
    """The start of `text`, escaped for a message."""
    return f"'{plain(text[: 4 * _SHOWN_CHARS].decode(errors='replace'), _SHOWN_CHARS)}'"
