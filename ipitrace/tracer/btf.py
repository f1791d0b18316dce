# SPDX-License-Identifier: Apache-2.0
"""A fast reader for the parts of the kernel's BTF that ipitrace needs.

The format is Documentation/bpf/btf.rst: a header, a type section of 32-bit words and a string
section. A type's length depends only on its second word. The length of a possible type at every
word is therefore computed for the whole section first; walking the section is then one list
look-up for each type.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

_HEADER: Final = struct.Struct("<HBBIIIII")
_MAGIC: Final = 0xEB9F
_INT_SIGNED: Final = 1  # BTF_INT_SIGNED and BTF_INT_BOOL
_INT_BOOL: Final = 4
_MAX_DEPTH: Final = 32  # nested typedefs and qualifiers; the kernel has the same limit


class BtfError(Exception):
    """The bytes are not valid BTF."""


class BtfKind(IntEnum):
    """BTF_KIND_*: the kinds of type, include/uapi/linux/btf.h."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_TRANSPARENT: Final = frozenset(
    (BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG)
)

# Words after the first three of every type: a number for the kind, and a number for each member.
_WORDS = np.zeros(32, np.uint32)
_WORDS_PER_MEMBER = np.zeros(32, np.uint32)
for _kind, _words in ((1, 1), (3, 3), (14, 1), (17, 1)):
    _WORDS[_kind] = _words
for _kind, _words in ((4, 3), (5, 3), (6, 2), (13, 2), (15, 3), (19, 3)):
    _WORDS_PER_MEMBER[_kind] = _words
_KNOWN = np.isin(np.arange(32), list(BtfKind))


@dataclass(frozen=True)
class Arg:
    """One argument: its name (None if BTF has none) and its shape.

    A shape is "*task_struct" for a pointer to that struct, "*" for any other pointer, "bool", or
    signedness and bits: "u32", "s64".
    """

    name: str | None
    shape: str


@dataclass(frozen=True)
class BtfFunction:
    """A function as a BPF program on it names it: the type id of its BTF_KIND_FUNC.

    `module` is the name of the BTF object that has it, "" for vmlinux. `n_args` is the number of
    the function's arguments.
    """

    type_id: int
    module: str
    n_args: int


@dataclass(frozen=True)
class _Type:
    btf: "Btf"
    at: int  # its first word
    name_off: int
    kind: int
    n_members: int
    bitfields: bool  # member offsets have a bit-field size in their top byte
    ref: int  # a size or a type id, depending on the kind

    def rows(self, words_per_member: int) -> list[list[int]]:
        """The words of each member."""
        first = self.at + 3
        words = self.btf.words[first : first + words_per_member * self.n_members]
        rows: list[list[int]] = words.reshape(-1, words_per_member).tolist()
        return rows

    def member_bits(self, member: str, searched: set[tuple[int, int]]) -> int | None:
        """The bit offset of `member`; `searched` prevents an endless search."""
        key = (id(self.btf), self.at)
        if key in searched:
            return None
        searched.add(key)
        for name_off, type_id, position in self.rows(3):
            bits = position & 0xFFFFFF if self.bitfields else position
            if name_off:
                if self.btf.string(name_off) == member:
                    return bits
                continue
            inner = self.btf.resolve(type_id)
            if inner is not None and inner.kind in (BtfKind.STRUCT, BtfKind.UNION):
                inside = inner.member_bits(member, searched)
                if inside is not None:
                    return bits + inside
        return None


class Btf:
    """One BTF blob: vmlinux's, or a module's on top of vmlinux's (`base`)."""

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        """Index `data`. Raises BtfError if it is malformed."""
        if len(data) < _HEADER.size:
            raise BtfError("shorter than a BTF header")
        magic, version, _flags, hdr_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC or version != 1:
            raise BtfError("not a little-endian BTF of version 1")
        types, strings = hdr_len + type_off, hdr_len + str_off
        if hdr_len < _HEADER.size or types % 4 or type_len % 4:
            raise BtfError("misplaced type section")
        if types + type_len > len(data) or strings + str_len > len(data):
            raise BtfError("a section reaches beyond the end")
        self._base = base
        self.words: NDArray[np.uint32] = np.frombuffer(data, "<u4", type_len // 4, types)
        self._strings = data[strings : strings + str_len]
        self._first_string: int = base.string_end if base else 0
        self._first_id: int = base.type_end if base else 1
        self._starts = self._walk()

    @property
    def string_end(self) -> int:
        """The string offset where a split BTF on top of this one begins."""
        return self._first_string + len(self._strings)

    @property
    def type_end(self) -> int:
        """The type id where a split BTF on top of this one begins."""
        return self._first_id + len(self._starts)

    def _walk(self) -> NDArray[np.uint32]:
        """The index of the first word of every type, in the order of their ids."""
        n_words = len(self.words)
        info = self.words[1:]
        kinds = (info >> 24) & 31
        lengths = 3 + _WORDS[kinds] + _WORDS_PER_MEMBER[kinds] * (info & 0xFFFF)
        following = memoryview(np.arange(len(info), dtype=np.uint32) + lengths.astype(np.uint32))
        starts: list[int] = []
        at = 0
        while at < n_words - 2:
            starts.append(at)
            at = following[at]
        if at != n_words:
            raise BtfError("the last type is cut off")
        found: NDArray[np.uint32] = np.array(starts, np.uint32)
        if starts and not _KNOWN[(self.words[found + 1] >> 24) & 31].all():
            raise BtfError("a type of unknown kind")
        return found

    @cached_property
    def _names(self) -> NDArray[np.uint32]:
        return self.words[self._starts]

    @cached_property
    def _kinds(self) -> NDArray[np.uint32]:
        return ((self.words[self._starts + 1] >> 24) & 31).astype(np.uint32)

    def string(self, offset: int) -> str:
        """The name stored at `offset`."""
        if offset < self._first_string:
            assert self._base is not None  # noqa: S101  (only a split BTF starts above 0)
            return self._base.string(offset)
        start = offset - self._first_string
        end = self._strings.find(b"\0", start)
        if start > len(self._strings) or end < 0:
            raise BtfError("a name lies outside the string section")
        return self._strings[start:end].decode("utf-8", "replace")

    def string_offset(self, name: str) -> int | None:
        """The offset of the complete string `name`; a string section has every string once."""
        raw = name.encode() + b"\0"
        if self._strings.startswith(raw):
            return self._first_string
        at = self._strings.find(b"\0" + raw)
        if at >= 0:
            return self._first_string + at + 1
        return self._base.string_offset(name) if self._base else None

    def type_of(self, type_id: int) -> _Type:
        """The type with this id, here or in the base."""
        if type_id < self._first_id:
            if self._base is None or type_id <= 0:
                raise BtfError("a type id does not exist")
            return self._base.type_of(type_id)
        if type_id >= self.type_end:
            raise BtfError("a type id does not exist")
        at = int(self._starts[type_id - self._first_id])
        name_off, info, ref = (int(word) for word in self.words[at : at + 3])
        return _Type(self, at, name_off, (info >> 24) & 31, info & 0xFFFF, bool(info >> 31), ref)

    def resolve(self, type_id: int) -> _Type | None:
        """The type without typedefs and qualifiers; None for void."""
        for _ in range(_MAX_DEPTH):
            if type_id == 0:
                return None
            found = self.type_of(type_id)
            if found.kind not in _TRANSPARENT:
                return found
            type_id = found.ref
        raise BtfError("typedefs form a cycle")

    def find(self, name: str, kind: BtfKind) -> int | None:
        """The id of the first type of this name and kind, here or in the base; None if absent."""
        own = self.own(name, kind)
        if own:
            return own[0]
        return self._base.find(name, kind) if self._base else None

    def own(self, name: str, kind: BtfKind) -> list[int]:
        """The ids of all types of this name and kind that are here, not in the base."""
        offset = self.string_offset(name)
        if offset is None:
            return []
        hits = np.flatnonzero((self._names == offset) & (self._kinds == kind))
        return [self._first_id + int(hit) for hit in hits]

    def member_offset(self, struct_name: str, member: str) -> int | None:
        """Byte offset of `member` in `struct struct_name`; None if it does not exist.

        The member may be inside an anonymous struct or union. Raises BtfError if it is a bit-field
        that does not start at a byte.
        """
        type_id = self.find(struct_name, BtfKind.STRUCT)
        if type_id is None:
            return None
        bits = self.type_of(type_id).member_bits(member, set())
        if bits is None:
            return None
        if bits % 8:
            raise BtfError(f"{struct_name}.{member} does not start at a byte")
        return bits // 8

    def func_args(self, name: str) -> tuple[Arg, ...] | None:
        """The named arguments of function `name`; None if BTF lacks the function."""
        type_id = self.find(name, BtfKind.FUNC)
        return None if type_id is None else self._args(self.resolve(self.type_of(type_id).ref))

    def func_typedef_args(self, name: str) -> tuple[Arg, ...] | None:
        """The arguments of `typedef void (*name)(...)`; None if BTF lacks the typedef."""
        type_id = self.find(name, BtfKind.TYPEDEF)
        if type_id is None:
            return None
        pointer = self.resolve(type_id)
        if pointer is None or pointer.kind != BtfKind.PTR:
            raise BtfError(f"{name} is not a pointer to a function")
        return self._args(pointer.btf.resolve(pointer.ref))

    def _args(self, proto: _Type | None) -> tuple[Arg, ...]:
        if proto is None or proto.kind != BtfKind.FUNC_PROTO:
            raise BtfError("a function has no prototype")
        btf = proto.btf
        return tuple(
            Arg(btf.string(name_off) or None, btf.shape(type_id))
            for name_off, type_id in proto.rows(2)
        )

    def shape(self, type_id: int) -> str:
        """The notation of this type in Arg.shape."""
        found = self.resolve(type_id)
        if found is None:
            return "void"
        if found.kind == BtfKind.PTR:
            target = found.btf.resolve(found.ref)
            is_struct = target is not None and target.kind in (BtfKind.STRUCT, BtfKind.FWD)
            return "*" + (target.btf.string(target.name_off) if target and is_struct else "")
        encoding = 0
        if found.kind == BtfKind.INT:
            encoding = int(found.btf.words[found.at + 3]) >> 24
        elif found.kind not in (BtfKind.ENUM, BtfKind.ENUM64):
            return BtfKind(found.kind).name.lower()
        if encoding & _INT_BOOL:
            return "bool"
        return f"{'s' if encoding & _INT_SIGNED else 'u'}{8 * found.ref}"


def function_in(blobs: Mapping[str, Btf], name: str) -> BtfFunction | None:
    """The only function of this name in `blobs`, which are by module ("" for vmlinux).

    None if there is none, or if there are several. Raises BtfError.
    """
    found = [
        (module, type_id)
        for module, btf in blobs.items()
        for type_id in btf.own(name, BtfKind.FUNC)
    ]
    if len(found) != 1:
        return None
    (module, type_id), args = found[0], blobs[found[0][0]].func_args(name)
    return None if args is None else BtfFunction(type_id, module, len(args))


def tracepoint_args(btf: Btf, tracepoint: str) -> tuple[Arg, ...] | None:
    """The arguments of a raw tracepoint program of `tracepoint`, in order; None if BTF lacks it.

    These are tried in order, and have names: `__traceiter_X` (since d25e37d89dd2,
    "tracepoint: Optimize using static_call()"), `__probestub_X`, `__bpf_trace_X`.
    The last is `btf_trace_X` (since e8c423fb31fa, "bpf: Add typecast to raw_tracepoints to
    help BTF generation"), which has types only. The first argument of each is the tracepoint's
    private data, which a program does not receive. Raises BtfError.
    """
    for prefix in ("__traceiter_", "__probestub_", "__bpf_trace_"):
        args = btf.func_args(prefix + tracepoint)
        if args and all(arg.name for arg in args):
            return args[1:]
    args = btf.func_typedef_args("btf_trace_" + tracepoint)
    return args[1:] if args else None
