# SPDX-License-Identifier: Apache-2.0
"""Text as somebody writes it who wants more than to be shown, and what must become of it."""

import unicodedata
from typing import TypeVar

from hypothesis import strategies as st

from ipitrace.base.foreign import map_strings

T = TypeVar("T")

# Each begins a line of its own that looks like ours, or does something in some format.
SAMPLES = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1b[2J\x1b[H",
    "\x9b31m\x9d0;title\x9c",
    "\r\x1b[K",
    "a\nFORGED line",
    "a\u2028FORGED\u2029line\x85more",
    "\u202edeutsre\u2066\u2069\u200b\u200f\ufeff",
    "\U000e0041\U000e007f\ufe0f\u115f",
    "\ud800\udcff\udfff",
    "a\x00b\x7f\x08\x08",
    "o\u0301\u0302\u0303\u0304\u0305\u0306\u0307",
    "]]><evil/>&amp;<!--",
    "<script>alert(1)</script><img src=x onerror=y>",
    "![x](http://evil.example/x.png) [l](javascript:y)",
    "<http://evil.example> https://evil.example www.evil.example me@evil.example",
    "@everyone #1 GH-1 owner/repo#2",
    "|`a`|**b**|_c_|~~d~~|\\|",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    " =1",
    "\uff1d1",
    '"} 1\nforged{a="b"} 2\n# EOF',
    "[red]markup[/red] [/] [link=http://evil.example]x[/link]",
    "\u6f22\u5b57\uff21\U0001f600",
    "x" * 5000,
    "\x1b" * 5000,
    "",
    " ",
    "0.5",
    "-2.5",
)

hostile_text = st.one_of(
    st.sampled_from(SAMPLES),
    st.text(st.characters(), max_size=40),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Mn"]), max_size=10),
    st.lists(st.sampled_from(SAMPLES), max_size=4).map("".join),
)


def poisoned(value: T, text: str, *, spared: frozenset[str] = frozenset()) -> T:
    """The data with `text` at the end of every string that it may be in at all."""
    return map_strings(value, lambda old: old if old in spared else old + text)


def assert_harmless(shown: str) -> None:
    """Whatever a terminal, or a person who reads, could be deceived by is not there."""
    for char in shown:
        category = unicodedata.category(char)
        assert char == "\n" or category[0] != "C", f"{char!r} is {category}"
        assert category not in {"Zl", "Zp"}
    assert not any(line.startswith("FORGED") for line in shown.splitlines())
    assert shown.split("\n") == (shown + "\n").splitlines() or not shown
    shown.encode()
