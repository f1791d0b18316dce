# SPDX-License-Identifier: Apache-2.0
"""Compiled BPF programs and the definitions of their maps, independent of any process.

A program refers to a map by the file descriptor that the map has in the loading process
(BPF_LD_IMM64 with BPF_PSEUDO_MAP_FD, Documentation/bpf/standardization/instruction-set.rst). Here
these descriptors are removed, and each reference is listed.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_INSTRUCTION: Final = struct.Struct("<BBhi")
_LOAD_IMM64: Final = 0x18  # BPF_LD | BPF_IMM | BPF_DW; takes two instructions
_CALL: Final = 0x85  # BPF_JMP | BPF_CALL
_PSEUDO_MAP_FD: Final = 1
_IMM_AT: Final = 4  # bytes into an instruction
_MOST_INSTRUCTIONS: Final = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS, include/linux/bpf.h


class BpfObjectError(Exception):
    """The code is not code that can be loaded in another process."""


@dataclass(frozen=True)
class MapSpec:
    """One map: its name, and the arguments with which it is created (enum bpf_map_type etc.)."""

    name: str
    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class MapReference:
    """The instruction at index `at` loads the map with this name."""

    at: int
    name: str


@dataclass(frozen=True)
class ProgramCode:
    """One program: its instructions in hexadecimal, without the descriptors of maps."""

    name: str
    code_hex: str
    references: tuple[MapReference, ...]

    def linked(self, fd_of: Mapping[str, int]) -> bytes:
        """The instructions with the descriptors of the maps of this process."""
        code = bytearray.fromhex(self.code_hex)
        for reference in self.references:
            place = reference.at * _INSTRUCTION.size + _IMM_AT
            struct.pack_into("<i", code, place, fd_of[reference.name])
        return bytes(code)


@dataclass(frozen=True)
class BpfObject:
    """The result of one compilation."""

    maps: tuple[MapSpec, ...]
    programs: tuple[ProgramCode, ...]

    def check(self) -> None:
        """Check what the types do not show. Raises BpfObjectError."""
        names = [one.name for one in self.maps] + [one.name for one in self.programs]
        if len(set(names)) < len(names) or not all(n.isidentifier() for n in names):
            raise BpfObjectError("a name is not valid")
        if any(not 0 <= n < 1 << 32 for one in self.maps for n in _sizes(one)):
            raise BpfObjectError("a size of a map is out of range")
        maps = {one.name for one in self.maps}
        for program in self.programs:
            found, _ = _without_descriptors(_code(program), {0: ""})
            if [one.at for one in program.references] != [at for at, _ in found]:
                raise BpfObjectError("the references to maps do not match the code")
            if not {one.name for one in program.references} <= maps:
                raise BpfObjectError("a map is not defined")


def detached(name: str, code: bytes, maps: Mapping[int, str]) -> ProgramCode:
    """A program without its process's descriptors; `maps` are the names of the maps by descriptor.

    Raises BpfObjectError if the code refers to anything else of the process.
    """
    references, plain = _without_descriptors(code, maps)
    return ProgramCode(name, plain.hex(), tuple(MapReference(*one) for one in references))


def _without_descriptors(
    code: bytes, maps: Mapping[int, str]
) -> tuple[Sequence[tuple[int, str]], bytes]:
    if len(code) % _INSTRUCTION.size or not 0 < len(code) // _INSTRUCTION.size < _MOST_INSTRUCTIONS:
        raise BpfObjectError("the length of a program is not valid")
    plain = bytearray(code)
    references: list[tuple[int, str]] = []
    follows = False  # the second half of BPF_LD_IMM64
    for at, (opcode, registers, _offset, imm) in enumerate(_INSTRUCTION.iter_unpack(code)):
        source = registers >> 4
        if follows:
            follows = False
            continue
        follows = opcode == _LOAD_IMM64
        if opcode == _LOAD_IMM64 and source == _PSEUDO_MAP_FD:
            if imm not in maps:
                raise BpfObjectError("a program refers to an unknown map")
            references.append((at, maps[imm]))
            struct.pack_into("<i", plain, at * _INSTRUCTION.size + _IMM_AT, 0)
        elif opcode in (_LOAD_IMM64, _CALL) and source:
            raise BpfObjectError("a program refers to something other than maps and helpers")
    return references, bytes(plain)


def _code(program: ProgramCode) -> bytes:
    try:
        return bytes.fromhex(program.code_hex)
    except ValueError as error:
        raise BpfObjectError("the code is not hexadecimal") from error


def _sizes(one: MapSpec) -> tuple[int, ...]:
    return one.map_type, one.key_size, one.value_size, one.max_entries, one.flags
