# SPDX-License-Identifier: Apache-2.0
"""Convert JSON values to dataclasses strictly, by their type hints, and back."""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_hints = functools.cache(get_type_hints)

LATER: Final = {"later": True}
"""Metadata of a field that a format got later: files may lack it, and it is left out where None."""


@dataclass(frozen=True, kw_only=True)
class OpenObject:
    """A JSON object to which versions may add keys, and of which older files lack some.

    Attributes:
        absent: those of its keys that are not in the file; their fields have their defaults.
        other: keys that this version does not know, with their values as they are.
    """

    absent: frozenset[str] = frozenset()
    other: Mapping[str, Any] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """The key is in the file, perhaps with null as its value."""
        return key not in self.absent

    def to_dict(self) -> dict[str, Any]:
        """The object as the file has it: absent keys stay absent, unknown ones stay."""
        known = {name: unload(getattr(self, name)) for name in keys_of(type(self))}
        return {key: value for key, value in known.items() if self.has(key)} | dict(self.other)


def keys_of(cls: type[OpenObject]) -> tuple[str, ...]:
    """The keys that an open object of this version may have."""
    own = {field.name for field in fields(OpenObject)}
    return tuple(field.name for field in fields(cls) if field.name not in own)


def unload(value: object) -> Any:  # noqa: ANN401 - JSON's values
    """`value` as plain values, which load() makes the same value of."""
    if isinstance(value, OpenObject):
        return value.to_dict()
    if is_dataclass(value):
        kept = {f.name: (getattr(value, f.name), "later" in f.metadata) for f in fields(value)}
        return {k: unload(v) for k, (v, is_later) in kept.items() if not (is_later and v is None)}
    if isinstance(value, Mapping):
        return {key: unload(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(unload, value))
    return value


def load(cls: type[T], value: object) -> T:
    """Convert `value`, as dataclasses.asdict() or json made it, to the dataclass `cls`.

    Supported types are dataclasses, mappings with string keys, tuples, unions, Any, and JSON's
    scalars. The only conversion is from lists to tuples, so a loaded value prints as the saved
    value did.
    Only an OpenObject may have keys that its class does not have.

    Raises:
        ValueError: `value` has a key that `cls` does not have, lacks a key without a default, or
            has a value of another type. The message names the key.
    """
    loaded: T = _load(cls, value, "")
    return loaded


def _load(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - hints and JSON are Any
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in {Union, UnionType}:
        return _load_union(get_args(hint), value, where)
    if is_dataclass(hint):
        return _load_dataclass(hint, value, where)
    if origin is tuple:
        return _load_tuple(get_args(hint), value, where)
    if origin is not None and issubclass(origin, Mapping):
        return _load_mapping(get_args(hint), value, where)
    return _load_scalar(hint, value, where)


def _load_union(arms: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and NoneType in arms:
        return None
    others = [arm for arm in arms if arm is not NoneType]
    for arm in others[:-1]:
        try:
            return _load(arm, value, where)
        except ValueError:
            continue
    return _load(others[-1], value, where)


def _load_dataclass(cls: Any, value: Any, where: str) -> object:  # noqa: ANN401 - see _load
    _checked(isinstance(value, Mapping), value, where, "an object")
    hints = _hints(cls)
    is_open = issubclass(cls, OpenObject)
    names = keys_of(cls) if is_open else tuple(field.name for field in fields(cls))
    other = {key: inner for key, inner in value.items() if key not in names}
    for key in other if not is_open else ():
        raise ValueError(f"the key {_inside(where, key)} is not known")
    absent = frozenset(names) - value.keys()
    for field_ in fields(cls):
        needed = field_.default is MISSING and field_.default_factory is MISSING
        if needed and field_.name in absent:
            raise ValueError(f"the key {_inside(where, field_.name)} is missing")
    known = {
        name: _load(hints[name], value[name], _inside(where, name))
        for name in value
        if name not in other
    }
    return cls(**known, absent=absent, other=other) if is_open else cls(**known)


def _load_mapping(hints: tuple[Any, ...], value: Any, where: str) -> object:  # noqa: ANN401
    _checked(isinstance(value, Mapping), value, where, "an object")
    key_hint, value_hint = hints
    return {
        _load(key_hint, key, where): _load(value_hint, inner, _inside(where, key))
        for key, inner in value.items()
    }


def _load_tuple(hints: tuple[Any, ...], value: Any, where: str) -> object:  # noqa: ANN401
    _checked(isinstance(value, list | tuple), value, where, "an array")
    if hints[1:] == (...,):
        hints = hints[:1] * len(value)
    _checked(len(hints) == len(value), value, where, f"an array of {len(hints)}")
    return tuple(
        _load(hint, inner, f"{where}[{i}]")
        for i, (hint, inner) in enumerate(zip(hints, value, strict=True))
    )


def _load_scalar(hint: Any, value: Any, where: str) -> object:  # noqa: ANN401 - see _load
    scalars: dict[Any, tuple[type, ...]] = {
        str: (str,),
        bool: (bool,),
        int: (int,),
        float: (int, float),
        NoneType: (NoneType,),
    }
    if hint not in scalars:
        raise TypeError(f"{where}: the type {hint} cannot be loaded")
    right = isinstance(value, scalars[hint]) and (hint is bool or not isinstance(value, bool))
    return _checked(right, value, where, getattr(hint, "__name__", str(hint)))


def _checked(right: bool, value: Any, where: str, wanted: str) -> Any:  # noqa: ANN401, FBT001
    if not right:
        raise ValueError(f"{where or 'the document'} is {type(value).__name__}, not {wanted}")
    return value


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
