# SPDX-License-Identifier: Apache-2.0
"""Compiled programs lose the descriptors of one process and get those of another."""

import struct
from dataclasses import replace

import pytest

from ipitrace.tracer.bpf_object import (
    BpfObject,
    BpfObjectError,
    MapReference,
    MapSpec,
    ProgramCode,
    detached,
)

HEADS = MapSpec("heads", 2, 4, 64, 8, 1024)
SLOTS = replace(HEADS, name="slots")
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def load_imm64(source: int, imm: int, high: int = 0) -> bytes:
    return struct.pack("<BBhiBBhi", 0x18, 1 | source << 4, 0, imm, 0, 0, 0, high)


def call(source: int, imm: int) -> bytes:
    return struct.pack("<BBhi", 0x85, source << 4, 0, imm)


# A plain constant that equals a descriptor, and whose second half looks like a reference.
CODE = load_imm64(1, 7) + load_imm64(0, 7, 0x18) + load_imm64(1, 9) + call(0, 1) + EXIT
PROGRAM = detached("probe", CODE, {7: "heads", 9: "slots"})
OBJECT = BpfObject((HEADS, SLOTS), (PROGRAM,))


def test_only_references_to_maps_change() -> None:
    assert PROGRAM.references == (MapReference(0, "heads"), MapReference(4, "slots"))
    assert PROGRAM.linked({"heads": 7, "slots": 9}) == CODE
    other = PROGRAM.linked({"heads": 100, "slots": 3})
    assert other == load_imm64(1, 100) + CODE[16:32] + load_imm64(1, 3) + CODE[48:]
    OBJECT.check()


@pytest.mark.parametrize(
    "code",
    [
        b"",
        EXIT[:-1],
        load_imm64(1, 8),
        load_imm64(2, 7),  # BPF_PSEUDO_MAP_VALUE
        load_imm64(4, 7),  # BPF_PSEUDO_FUNC
        call(1, 5),  # BPF_PSEUDO_CALL: another function of the unit
        EXIT * 1_000_000,
    ],
)
def test_code_that_needs_more_of_its_process(code: bytes) -> None:
    with pytest.raises(BpfObjectError):
        detached("probe", code, {7: "heads"})


@pytest.mark.parametrize(
    "wrong",
    [
        replace(OBJECT, maps=(HEADS,)),
        replace(OBJECT, maps=(HEADS, SLOTS, HEADS)),
        replace(OBJECT, programs=(PROGRAM, PROGRAM)),
        replace(OBJECT, maps=(HEADS, SLOTS, replace(HEADS, name="a/b"))),
        replace(OBJECT, maps=(HEADS, SLOTS, replace(HEADS, name="c", max_entries=1 << 32))),
        replace(OBJECT, maps=(HEADS, SLOTS, replace(HEADS, name="c", key_size=-1))),
        replace(OBJECT, programs=(replace(PROGRAM, code_hex="no"),)),
        replace(OBJECT, programs=(replace(PROGRAM, code_hex=""),)),
        replace(OBJECT, programs=(replace(PROGRAM, code_hex=EXIT.hex()),)),
        replace(OBJECT, programs=(replace(PROGRAM, references=PROGRAM.references[:1]),)),
        replace(OBJECT, programs=(replace(PROGRAM, references=(MapReference(-9, "heads"),)),)),
        replace(OBJECT, programs=(ProgramCode("p", CODE.hex(), PROGRAM.references),)),
    ],
)
def test_an_object_that_does_not_fit_together(wrong: BpfObject) -> None:
    with pytest.raises(BpfObjectError):
        wrong.check()
