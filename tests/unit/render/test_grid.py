# SPDX-License-Identifier: Apache-2.0
"""How columns get their widths."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipitrace.render.grid import TIE, clipped, columns_of, dense, fill, fitted, table, wrapped

LONG = "a text of many words that does not fit into a column of few"
CHINESE = "东京的虚拟机"
MIXED = st.text("ab-, \u0301é虚拟机한국ｶ", min_size=1, max_size=40).map(str.strip).filter(bool)


def test_what_fits_is_left_alone() -> None:
    assert table(("name", "n"), [("a b", "12")], text=(0,)) == "name   n\n----  --\na b   12"
    assert table((), [("a", "b")], text=(0, 1)) == "a  b"
    assert table((), []) == ""
    assert table(("a", "b"), []) == "a  b\n-  -"


def test_only_text_wraps_and_its_names_stand_on_the_line() -> None:
    shown = table(("name", "two words", "n"), [("x", LONG, "1234567")], text=(0, 1), width=40)
    lines = shown.splitlines()
    assert lines[0].split() == ["name", "two", "words", "n"]
    assert lines[2].startswith("x     a text of many words")
    assert lines[2].endswith("1234567")
    assert " ".join(" ".join(lines[2:]).replace("1234567", "").split()) == f"x {LONG}"


def test_names_of_columns_wrap_before_a_table_is_divided() -> None:
    shown = table(("k", "unmatched events", "unmatched IPIs"), [("a", "1", "2")], width=25)
    names = [line.split() for line in shown.splitlines()[:2]]
    assert names == [["unmatched", "unmatched"], ["k", "events", "IPIs"]]


def test_a_table_that_is_too_wide_is_divided_and_each_part_has_the_keys() -> None:
    names = [f"column{i}" for i in range(6)]
    shown = table(("key", *names), [("row", *map(str, range(6)))], text=(0,), width=24)
    parts = shown.split("\n\n")
    assert len(parts) == 3
    assert all(part.splitlines()[2].startswith("row") for part in parts)
    assert [name for part in parts for name in part.splitlines()[0].split()[1:]] == names
    tied = table(("key", *names), [("row", *map(str, range(6)))], text=(0,), together=(2, 4, 6))
    assert tied == table(("key", *names), [("row", *map(str, range(6)))], text=(0,))
    tied = table(
        ("key", *names), [("row", *map(str, range(6)))], text=(0,), together=(2, 4, 6), width=30
    )
    assert [len(part.splitlines()[0].split()) - 1 for part in tied.split("\n\n")] == [2, 2, 2]


def test_a_long_word_breaks_after_punctuation() -> None:
    assert wrapped("exits.target.avic_unaccelerated", 20) == ["exits.target.avic_", "unaccelerated"]
    assert wrapped("x" * 25, 20) == ["x" * 20, "x" * 5]


def test_a_tie_is_a_space_that_does_not_break() -> None:
    text = f"{'many words ' * 2}one{TIE}two"
    assert fill(text, 30, "a: ") == "a: many words many words\n   one two"


def test_what_others_wrote_does_not_begin_a_line() -> None:
    words = "one FORGED two FORGED three FORGED four FORGED"
    shown = [
        fill(words, 30),
        table(("name", "x"), [(words, words)], text=(0, 1), width=40),
        "\n".join(dense(("name", "x"), [(words, words)], text=(0, 1), width=40)),
    ]
    for text in shown:
        assert len(text.splitlines()) >= 2
        assert not any(line.startswith("FORGED") for line in text.splitlines())


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 200), st.data())
def test_widths_fit_and_none_is_less_than_its_least(
    wanted: list[int], room: int, data: st.DataObject
) -> None:
    least = [data.draw(st.integers(0, want)) for want in wanted]
    widths = fitted(wanted, least, room)
    gaps = 2 * (len(wanted) - 1)
    if widths is None:
        assert sum(least) + gaps > room
        return
    assert all(a <= b <= c for a, b, c in zip(least, widths, wanted, strict=True))
    assert sum(widths) + gaps == min(room, sum(wanted) + gaps)


@pytest.mark.parametrize("width", [30, 60])
def test_dense_is_as_wide_as_it_may_be_and_cut_is_one_line_a_row(width: int) -> None:
    rows = [("instance-of-a-customer-0001", "12", LONG)] * 3
    for cut in (False, True):
        lines = dense(("VM", "n", "what"), rows, text=(0, 2), width=width, cut=cut)
        assert max(map(len, lines)) <= width
        assert (len(lines) == 4) == cut


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert [columns_of(text) for text in ("ab", CHINESE, "e\u0301", f"机{TIE}机")] == [2, 12, 1, 5]
    assert [clipped(CHINESE, width) for width in (0, 1, 4, 5, 99)] == [
        *("", "", "东京", "东京"),
        CHINESE,
    ]
    assert clipped("ae\u0301i", 2) == "ae\u0301"


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", [CHINESE, f"vm-{CHINESE}-1", "cafe\u0301"])
def test_columns_begin_and_end_at_the_same_place_on_every_line(name: str, *, cut: bool) -> None:
    """A name that is not ASCII is in the middle, so that there are columns on both sides of it."""
    rows = [("1", "guest1", "7", "end"), ("22", name, "1,000", "end")]
    headers = ("pid", "VM", "IPIs", "last")
    for width in (24, 30, 80):
        for shown in (
            table(headers, rows, text=(1, 3), width=width).splitlines(),
            dense(headers, rows, text=(1, 3), width=width, cut=cut),
        ):
            ends = [line.rstrip() for line in shown if line.rstrip().endswith(("end", "last"))]
            assert len(ends) == 3
            assert len({columns_of(line[: line.rindex(line.split()[-1])]) for line in ends}) == 1
            assert all(columns_of(line.rstrip()) <= width for line in shown)


def test_paragraphs_of_wide_characters_fit() -> None:
    text = f"{CHINESE * 5} {LONG} {CHINESE}"
    for width in (40, 60):
        lines = fill(text, width, f"{CHINESE}: ").splitlines()
        assert all(columns_of(line) <= width for line in lines)
        assert lines[1].startswith(" " * 14)
        assert "".join(lines).replace(" ", "") == f"{CHINESE}:{text}".replace(" ", "")


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(MIXED, MIXED, st.just("12")), min_size=1, max_size=4),
    cut=st.booleans(),
)
def test_nothing_is_wider_than_the_terminal(*, rows: list[tuple[str, str, str]], cut: bool) -> None:
    for width in (24, 40, 100):
        for text in (
            table(("a", "b", "n"), rows, text=(0, 1), width=width),
            "\n".join(dense(("a", "b", "n"), rows, text=(0, 1), width=width, cut=cut)),
            *(fill(cell, width) for row in rows for cell in row),
        ):
            assert max(columns_of(line) for line in text.split("\n")) <= width
