# SPDX-License-Identifier: Apache-2.0
"""The BTF reader on blobs built here, whole and broken."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.tracer.btf import (
    Arg,
    Btf,
    BtfError,
    BtfFunction,
    BtfKind,
    function_in,
    tracepoint_args,
)


class Builder:
    """Writes BTF as Documentation/bpf/btf.rst describes it."""

    def __init__(self, base: "Builder | None" = None) -> None:
        self.strings = b"" if base else b"\0"
        self.first_string = len(base.strings) if base else 0
        self.types: list[bytes] = []
        self.first_id = 1 + len(base.types) if base else 1

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return self.first_string + len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str, ref: int, *extra: int, n_members: int = 0) -> int:
        info = kind << 24 | n_members
        self.types.append(struct.pack(f"<{3 + len(extra)}I", self.name(name), info, ref, *extra))
        return self.first_id + len(self.types) - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(BtfKind.INT, name, size, encoding << 24 | 8 * size)

    def structure(self, name: str, members: list[tuple[str, int, int]], kind: int = 4) -> int:
        words = [word for m, t, bits in members for word in (self.name(m), t, bits)]
        return self.add(kind, name, 0, *words, n_members=len(members))

    def prototype(self, args: list[tuple[str, int]]) -> int:
        words = [word for name, type_id in args for word in (self.name(name), type_id)]
        return self.add(BtfKind.FUNC_PROTO, "", 0, *words, n_members=len(args))

    def blob(self) -> bytes:
        types = b"".join(self.types)
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings)
        )
        return header + types + self.strings


def sample() -> Builder:
    """A small kernel: a task, one tracepoint with names, one with types only."""
    b = Builder()
    u32 = b.integer("unsigned int", 4)
    alias = b.add(BtfKind.TYPEDEF, "u32", u32)
    const = b.add(BtfKind.CONST, "", alias)
    s32 = b.integer("int", 4, encoding=1)
    flag = b.integer("_Bool", 1, encoding=4)
    inner = b.structure("", [("tgid", s32, 0), ("pid", s32, 32)])
    either = b.structure("", [("raw", u32, 0), ("", inner, 0)], kind=BtfKind.UNION)
    task = b.structure("task_struct", [("state", u32, 0), ("", either, 64), ("odd", u32, 131)])
    task_pointer = b.add(BtfKind.PTR, "", task)
    void_pointer = b.add(BtfKind.PTR, "", 0)
    named = b.prototype([("__data", void_pointer), ("next", task_pointer), ("cpu", const)])
    b.add(BtfKind.FUNC, "__traceiter_sched_switch", named)
    nameless = b.prototype([("", void_pointer), ("", flag), ("", s32)])
    b.add(BtfKind.TYPEDEF, "btf_trace_kvm_eoi", b.add(BtfKind.PTR, "", nameless))
    b.add(BtfKind.ARRAY, "", 0, u32, u32, 4)
    b.add(BtfKind.ENUM, "colour", 4, b.name("red"), 0, n_members=1)
    return b


def test_a_tracepoint_with_names() -> None:
    assert tracepoint_args(Btf(sample().blob()), "sched_switch") == (
        Arg("next", "*task_struct"),
        Arg("cpu", "u32"),
    )


def test_a_tracepoint_known_by_types_only() -> None:
    assert tracepoint_args(Btf(sample().blob()), "kvm_eoi") == (Arg(None, "bool"), Arg(None, "s32"))


def test_names_are_preferred_in_the_order_of_kernels() -> None:
    b = sample()
    u64 = b.integer("u64", 8)
    pointer = b.add(BtfKind.PTR, "", 0)
    for prefix, arg in (("__bpf_trace_", "oldest"), ("__probestub_", "newer")):
        b.add(BtfKind.FUNC, f"{prefix}kvm_eoi", b.prototype([("__data", pointer), (arg, u64)]))
    assert tracepoint_args(Btf(b.blob()), "kvm_eoi") == (Arg("newer", "u64"),)


def test_what_is_absent_is_none() -> None:
    btf = Btf(sample().blob())
    assert tracepoint_args(btf, "kvm_exit") is None
    assert btf.member_offset("task_struct", "absent") is None
    assert btf.member_offset("absent", "pid") is None
    assert btf.find("task_struct", BtfKind.UNION) is None
    # The tail of a longer name is no name.
    assert btf.find("struct", BtfKind.STRUCT) is None


def test_a_member_inside_anonymous_members() -> None:
    assert Btf(sample().blob()).member_offset("task_struct", "pid") == 12


def test_a_member_that_starts_inside_a_byte() -> None:
    with pytest.raises(BtfError, match=r"task_struct\.odd"):
        Btf(sample().blob()).member_offset("task_struct", "odd")


def test_a_module_on_top_of_vmlinux() -> None:
    below = sample()
    above = Builder(base=below)
    task = Btf(below.blob()).find("task_struct", BtfKind.STRUCT)
    assert task is not None
    pointer = above.add(BtfKind.PTR, "", task)
    proto = above.prototype([("__data", pointer), ("vcpu", pointer)])
    above.add(BtfKind.FUNC, "__traceiter_kvm_exit", proto)
    module = Btf(above.blob(), Btf(below.blob()))
    assert tracepoint_args(module, "kvm_exit") == (Arg("vcpu", "*task_struct"),)
    assert module.member_offset("task_struct", "pid") == 12
    assert tracepoint_args(module, "kvm_eoi") == (Arg(None, "bool"), Arg(None, "s32"))


def test_a_function_is_found_where_it_is_the_only_one_of_its_name() -> None:
    below = sample()
    pointer = below.add(BtfKind.PTR, "", 0)
    below_id = below.add(BtfKind.FUNC, "handler", below.prototype([]))
    below.add(BtfKind.FUNC, "twice", below.prototype([]))
    above = Builder(base=below)
    proto = above.prototype([("vcpu", pointer), ("vector", pointer)])
    above_id = above.add(BtfKind.FUNC, "deliver", proto)
    above.add(BtfKind.FUNC, "twice", proto)
    vmlinux = Btf(below.blob())
    blobs = {"kvm_intel": Btf(above.blob(), vmlinux), "": vmlinux}
    assert function_in(blobs, "deliver") == BtfFunction(above_id, "kvm_intel", 2)
    assert function_in(blobs, "handler") == BtfFunction(below_id, "", 0)
    assert function_in(blobs, "twice") is None
    assert function_in(blobs, "absent") is None


def test_structs_that_contain_themselves_end() -> None:
    b = Builder()
    b.structure("loop", [("", 1, 0), ("", 1, 0)])
    assert Btf(b.blob()).member_offset("loop", "pid") is None


def test_typedefs_that_go_round_are_an_error() -> None:
    b = Builder()
    b.add(BtfKind.TYPEDEF, "btf_trace_kvm_eoi", 1)
    with pytest.raises(BtfError):
        tracepoint_args(Btf(b.blob()), "kvm_eoi")


def exercise(data: bytes) -> None:
    """Ask everything we ever ask; anything but an answer or a BtfError is a defect."""
    try:
        btf = Btf(data)
    except BtfError:
        return
    for question in (
        lambda: tracepoint_args(btf, "sched_switch"),
        lambda: tracepoint_args(btf, "kvm_eoi"),
        lambda: btf.member_offset("task_struct", "pid"),
    ):
        try:
            question()
        except BtfError:
            continue


WHOLE = sample().blob()


def test_every_truncation_is_an_error() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(BtfError):
            Btf(WHOLE[:length])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    exercise(data)


@given(st.binary(max_size=400))
def test_any_bytes_behind_a_sane_header(body: bytes) -> None:
    types = len(body) // 8 * 4
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, types, types, len(body) - types)
    exercise(header + body)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8))
def test_any_corrupt_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    exercise(bytes(data))
