# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.words.exit_reasons import SVM_REASONS, VMX_REASONS, reason_name

TRACEFS = Path(__file__).parents[2] / "data" / "tracefs"
FORMATS = [
    path for path in sorted(TRACEFS.glob("*/kvm_exit")) if "__print_symbolic" in path.read_text()
]


def kernel_names(text: str) -> dict[int, dict[int, str]]:
    """The two __print_symbolic tables of a kvm_exit format file, by isa."""
    _, vmx, svm = text.split("__print_symbolic(")
    return {isa: _pairs(table.split("__print_flags")[0]) for isa, table in ((1, vmx), (2, svm))}


def _pairs(table: str) -> dict[int, str]:
    names = {}
    for number, name in re.findall(r'\{ ([^,]+), "([^"]+)" \}', table):
        names[sum(int(term, 0) for term in number.split(" + "))] = name
    return names


def test_there_is_a_list_of_a_running_kernel() -> None:
    assert "6.18" in [path.parent.name for path in FORMATS]


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("isa", [1, 2])
def test_every_name_the_kernel_prints_is_ours(isa: int, path: Path) -> None:
    names = kernel_names(path.read_text())[isa]
    assert len(names) > 60
    assert {number: reason_name(isa, number) for number in names} == names


@pytest.mark.parametrize(
    ("isa", "reason", "name"),
    [
        (1, 32, "MSR_WRITE"),
        (1, 7, "INTERRUPT_WINDOW"),
        (1, 85, "MSR_WRITE_IMM"),
        (1, 76, "SEAMCALL"),
        (1, 0x80000021, "INVALID_STATE+failed-entry"),
        (1, 0x0C000030, "EPT_VIOLATION+bus-lock+enclave"),
        (1, 0x00010001, "EXTERNAL_INTERRUPT+bit16"),
        (1, 35, "vmx:0x23"),
        (1, 0x80000023, "vmx:0x23+failed-entry"),
        (2, 0x401, "avic_incomplete_ipi"),
        (2, 0x4E, "PF excp"),
        (2, 0x49, "svm:0x49"),
        (2, -1, "invalid_guest_state"),
        (2, 2**64 - 1, "invalid_guest_state"),
        (2, 0xA6, "idle-halt"),
        (2, 0x403, "vmgexit"),
        (2, 0x80000018, "vmgexit_snp_run_vmpl"),
        (2, 0x8000001A, "vmgexit_savic"),
        (2, 0xF0000000, "sw"),
        (2, 0xF0000001, "svm:0xf0000001"),
        (3, 1, "isa3:0x1"),
    ],
)
def test_names(isa: int, reason: int, name: str) -> None:
    assert reason_name(isa, reason) == name


@pytest.mark.parametrize("names", [VMX_REASONS, SVM_REASONS])
def test_no_two_reasons_share_a_name(names: dict[int, str]) -> None:
    assert len(set(names.values())) == len(names)


@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_different_reasons_have_different_names(isa: int, one: int, other: int) -> None:
    assert (reason_name(isa, one) == reason_name(isa, other)) == (one == other)
