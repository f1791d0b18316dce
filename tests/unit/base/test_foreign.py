# SPDX-License-Identifier: Apache-2.0
import json
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

import pytest
from hostile import SAMPLES, assert_harmless, hostile_text
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.base.foreign import plain, plain_json, plain_lines, plain_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("guest-1 (qemu)", "guest-1 (qemu)"),
        (
            "G\u00e4ste \u6f22\u5b57 caf\u00e9 \U0001f600",
            "G\u00e4ste \u6f22\u5b57 caf\u00e9 \U0001f600",
        ),
        ("\x1b]0;t\x07", r"\x1b]0;t\x07"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202e\u2066\u200b\u2028", r"\u202e\u2066\u200b\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("e\u0301\u0302\u0303", "e\u0301\u0302\\u0303"),
        ("\u0301e", r"\u0301e"),
        ("a\u00a0b", r"a\xa0b"),
        ("a\u034fb\u3164", r"a\u034fb\u3164"),
    ],
)
def test_what_becomes_of_it(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_every_character_by_itself() -> None:
    for code in range(0x110000):
        char = chr(code)
        if unicodedata.category(char)[0] == "C" or unicodedata.category(char) in {"Zl", "Zp"}:
            assert plain(char).isascii()
            assert plain(char).startswith("\\")


@given(hostile_text, st.integers(3, 300))
def test_it_is_harmless_bounded_and_settled(text: str, most: int) -> None:
    shown = plain(text, most)
    assert_harmless(shown)
    assert "\n" not in shown
    assert len(shown) <= most
    assert plain(shown, most) == shown
    assert_harmless(plain_lines(text.replace("\n", " ")))


def test_an_escape_is_never_cut_in_two() -> None:
    for most in range(3, 20):
        assert plain("\x1b" * 100, most).replace(r"\x1b", "").strip(".") == ""


def test_a_long_text_takes_no_longer_than_a_short_one() -> None:
    assert plain("\x1b" * 50_000_000, 10) == r"\x1b..."


@given(
    st.recursive(hostile_text, lambda inner: st.lists(inner) | st.dictionaries(hostile_text, inner))
)
def test_json_keeps_its_values(value: object) -> None:
    for document in (
        json.dumps(value, indent=2),
        json.dumps(value, ensure_ascii=False, indent="\t"),
    ):
        shown = plain_json(document.replace("\n", "\r\n"))
        assert json.loads(shown) == json.loads(json.dumps(value))  # which pairs surrogates
        assert shown.isascii()
        assert shown.replace("\n", "").isprintable()


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    name: str
    number: float
    colour: Colour


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    named: dict[str, list[str | int | None]]


def test_values_are_gone_through() -> None:
    one = Inner("a\x1b", 1.5, Colour.RED)
    made = plain_values(Outer((one,), {"k\n": ["\x9b", 3, None]}))
    assert made == Outer((Inner(r"a\x1b", 1.5, Colour.RED),), {r"k\n": [r"\x9b", 3, None]})
    assert type(made.inner[0].colour) is Colour
    fine = Inner("a", 1, Colour.RED)
    assert plain_values(fine) is fine


def test_the_samples_are_not_harmless() -> None:
    """Else the tests of renderers could not fail."""
    harmful = 0
    for text in SAMPLES:
        try:
            assert_harmless(text)
        except (AssertionError, UnicodeEncodeError):
            harmful += 1
    assert harmful > 10
