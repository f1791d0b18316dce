# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from recordings import values_of

from ipitrace.base.loading import load


@dataclass(frozen=True)
class Inner:
    share: float
    either: int | str


@dataclass(frozen=True)
class Outer:
    name: str
    many: tuple[Inner, ...]
    pair: tuple[int, bool]
    by_name: Mapping[str, Inner | None]
    anything: Any
    later: Mapping[str, int] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "name": "a",
    "many": [{"share": 1, "either": "x"}],
    "pair": [1, True],
    "by_name": {"b": None},
    "anything": [1, {"c": None}],
}


@given(values_of(Outer))
def test_what_json_keeps_is_loaded_again(outer: Outer) -> None:
    assert load(Outer, asdict(outer)) == outer
    assert load(Outer, json.loads(json.dumps(asdict(outer)))) == outer


def test_a_key_with_a_default_may_be_missing() -> None:
    assert load(Outer, GOOD).later == {}


def test_a_whole_number_stays_one_where_a_float_may_stand() -> None:
    assert type(load(Outer, GOOD).many[0].share) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": 1}, "the key nam is not known"),
        ({"name": 1}, "name is int, not str"),
        ({"name": None}, "name is NoneType, not str"),
        ({"pair": [1, 1]}, r"pair\[1\] is int, not bool"),
        ({"pair": [True, True]}, r"pair\[0\] is bool, not int"),
        ({"pair": [1]}, "pair is list, not an array of 2"),
        ({"pair": "ab"}, "pair is str, not an array"),
        ({"many": [{"share": 1.0}]}, r"the key many\[0\].either is missing"),
        ({"many": [{"share": "1", "either": 1}]}, r"many\[0\].share is str, not float"),
        ({"many": [{"share": 1.0, "either": 1.5}]}, r"many\[0\].either is float, not str"),
        ({"many": [None]}, r"many\[0\] is NoneType, not an object"),
        ({"by_name": {"b": {"share": 1.0, "either": 1, "c": 1}}}, "the key by_name.b.c is not"),
        ({"by_name": []}, "by_name is list, not an object"),
        ({"later": {"b": 1.0}}, "later.b is float, not int"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(Outer, GOOD | change)


def test_the_whole_may_be_wrong() -> None:
    with pytest.raises(ValueError, match="the document is list, not an object"):
        load(Outer, [])


def test_a_type_that_json_cannot_bring_back_is_our_own_mistake() -> None:
    @dataclass
    class Odd:
        odd: set[int]

    with pytest.raises(TypeError, match="cannot be loaded"):
        load(Odd, {"odd": [1]})
