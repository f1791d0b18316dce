# SPDX-License-Identifier: Apache-2.0
"""The tracefs format reader on what kernels really print."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ipitrace.tracer.formats import Column, parse_format

TRACEFS = Path(__file__).parents[2] / "data" / "tracefs"


def test_a_real_kvm_exit() -> None:
    columns = parse_format((TRACEFS / "6.18/kvm_exit").read_text())
    assert columns["exit_reason"] == Column("exit_reason", 8, 4, signed=False)
    assert columns["info1"] == Column("info1", 32, 8, signed=False)
    assert columns["common_pid"] == Column("common_pid", 4, 4, signed=True)
    assert list(columns)[-1] == "requests"


def test_c_types() -> None:
    columns = parse_format((TRACEFS / "6.18/sched_switch").read_text())
    assert columns["next_pid"].c_type == "s32"
    assert columns["prev_comm"].c_type is None
    assert Column("packed", 9, 4, signed=False).c_type is None


def test_spellings_of_old_kernels() -> None:
    text = (
        "name: x\nID: 1\nformat:\n"
        "\tfield:char comm[16];\toffset:8;\tsize:16;\tsigned:1;\n"
        "\tfield:void * callback;\toffset:24;\tsize:8;\n"
        "\tfield:__data_loc char[] name;\toffset:32;\tsize:4;\tsigned:1;\n"
    )
    assert parse_format(text) == {
        "comm": Column("comm", 8, 16, signed=True),
        "callback": Column("callback", 24, 8, signed=False),
        "name": Column("name", 32, 4, signed=True),
    }


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    for name, column in parse_format(text).items():
        assert name == column.name


def test_a_truncated_file_keeps_whole_lines_only() -> None:
    text = (TRACEFS / "6.18/kvm_entry").read_text()
    whole = parse_format(text)
    for length in range(len(text)):
        assert parse_format(text[:length]).items() <= whole.items()
