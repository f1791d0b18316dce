# SPDX-License-Identifier: Apache-2.0
"""Convert JSON values to dataclasses strictly, by the type hints of the dataclasses."""

import dataclasses
import functools
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_hints = functools.cache(get_type_hints)


def load(cls: type[T], value: object) -> T:
    """Convert `value`, as dataclasses.asdict() or json made it, to the dataclass `cls`.

    Supported types are dataclasses, mappings with string keys, tuples, unions, Any, and JSON's
    scalars. The only conversion is from lists to tuples, so a loaded value prints as the saved
    value did.

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
    if dataclasses.is_dataclass(hint):
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
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise ValueError(f"the key {_inside(where, key)} is not known")
    for name, field in fields.items():
        needed = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if needed and name not in value:
            raise ValueError(f"the key {_inside(where, name)} is missing")
    return cls(
        **{name: _load(hints[name], inner, _inside(where, name)) for name, inner in value.items()}
    )


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
