# SPDX-License-Identifier: Apache-2.0
"""Runs inside the Intel host: tells the emulator where the kernel's tracepoints are.

Usage: inside.py TRACEPOINTS HOLDS, both JSON: a list of names, and an object of functions that
are to take longer, with the number of ticks. Prints the places as JSON.

A tracepoint is a static branch: include/linux/jump_label.h lists its places in the section
__jump_table of the kernel and of each module. While nothing is attached, a place holds a NOP
of 5 or 2 bytes. Patch 10 of the emulator stamps these. A function that ftrace can trace
begins with such a NOP, too.

Only Python's own library: this file is copied into the host.
"""

import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PORT = 0x8901
NOPS = (bytes.fromhex("0f1f440000"), bytes.fromhex("6690"))
"""arch/x86/include/asm/nops.h: those of 5 and of 2 bytes."""

_MODULES = ("kvm", "kvm_intel")
_ENTRY = struct.Struct("<iiq")  # struct jump_entry: code, target, key, relative to themselves
_KEY_OFFSET = 8  # struct tracepoint: const char *name; struct static_key key
_KEY_FLAGS = 3  # the low bits of jump_entry.key
_INIT_CODE = 2  # one of them: the kernel has freed the code
_ENTRY_NOPS = (0, 4)  # where a function has its NOP: at its beginning, or after ENDBR64


@dataclass(frozen=True)
class Place:
    """An address that the emulator stamps.

    Attributes:
        number: of the place in the stamps.
        name: the tracepoint's, or the function's.
        address: of the NOP.
        hold_ticks: how much longer the NOP takes.
    """

    number: int
    name: str
    address: int
    hold_ticks: int


class UnfitError(Exception):
    """The host's kernel is not as expected; the message is for the user."""


class Memory:
    """The kernel's memory, from /proc/kcore, an ELF file with a segment for each region."""

    def __init__(self) -> None:
        """Open it; the descriptor is kept until the process ends."""
        self._fd = os.open("/proc/kcore", os.O_RDONLY)
        head = os.pread(self._fd, 64, 0)
        offset, size, n = struct.unpack_from("<32xQ14xHH", head)
        headers = os.pread(self._fd, size * n, offset)
        # Elf64_Phdr: type, flags, offset, vaddr, paddr, filesz, memsz, align
        fields = [struct.unpack_from("<IIQQQQ", headers, size * i) for i in range(n)]
        self._segments = [(f[3], f[5], f[2]) for f in fields if f[0] == 1]

    def read(self, address: int, size: int) -> bytes:
        """Some bytes of the kernel's memory.

        Raises:
            UnfitError: they are not readable.
        """
        for start, length, offset in self._segments:
            if start <= address and address + size <= start + length:
                return os.pread(self._fd, size, offset + address - start)
        raise UnfitError(f"/proc/kcore does not contain {address:#x}")


def sites(table: bytes, address: int) -> Iterator[tuple[int, int]]:
    """The (code, key) addresses of a section __jump_table at `address`, without init code."""
    for offset in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        code, _target, key = _ENTRY.unpack_from(table, offset)
        if key & _INIT_CODE or not key:
            continue
        at = address + offset
        yield at + code, (at + 8 + key & ~_KEY_FLAGS) & (1 << 64) - 1


def find_places(tracepoints: Iterable[str], holds: Mapping[str, int]) -> list[Place]:
    """The places of tracepoints and functions, each with a NOP.

    Raises:
        UnfitError: the kernel lacks one, or it is in use.
    """
    memory, symbols = Memory(), _symbols()
    tables = {start: memory.read(start, end - start) for start, end in _tables(symbols)}
    found = [site for start, table in tables.items() for site in sites(table, start)]
    places: list[Place] = []
    for name in tracepoints:
        key = address_of(symbols, f"__tracepoint_{name}") + _KEY_OFFSET
        codes = sorted({code for code, at in found if at == key})
        if not codes:
            raise UnfitError(f"no code has the tracepoint {name}")
        for code in codes:
            there = memory.read(code, 5)
            if not there.startswith(NOPS):
                raise UnfitError(f"the tracepoint {name} is in use: {there.hex()} at {code:#x}")
            places.append(Place(len(places), name, code, 0))
    for name, ticks in holds.items():
        start = address_of(symbols, name)
        nops = [at for at in _ENTRY_NOPS if memory.read(start + at, 5) == NOPS[0]]
        if not nops:
            raise UnfitError(f"the function {name} cannot be traced, or is traced already")
        places.append(Place(len(places), name, start + nops[0], ticks))
    return places


def tell_emulator(places: Iterable[Place]) -> None:
    """Replace the emulator's table."""
    lines = [f"place {p.address:x} {p.number} {p.hold_ticks}\n" for p in places]
    port = os.open("/dev/port", os.O_WRONLY)
    for char in "".join(["clear\n", *lines]).encode():
        os.pwrite(port, bytes([char]), PORT)  # more bytes would go to the ports that follow
    os.close(port)


def _symbols() -> str:
    return Path("/proc/kallsyms").read_text()


def address_of(symbols: str, name: str) -> int:
    """The address of a symbol in the text of /proc/kallsyms.

    Raises:
        UnfitError: it is not there, or not only once.
    """
    # a line is "ADDRESS TYPE NAME", with "\t[MODULE]" for a module's
    found = [m.start() for m in re.finditer(rf" {re.escape(name)}[\t\n]", symbols)]
    if len(found) != 1:
        raise UnfitError(f"the kernel has {len(found)} symbols {name}, not one")
    line = symbols.rfind("\n", 0, found[0]) + 1
    return int(symbols[line : found[0]].split(maxsplit=1)[0], 16)


def _tables(symbols: str) -> Iterator[tuple[int, int]]:
    yield address_of(symbols, "__start___jump_table"), address_of(symbols, "__stop___jump_table")
    for module in _MODULES:
        folder = Path(f"/sys/module/{module}/sections")
        starts = {file.name: int(file.read_text(), 16) for file in folder.iterdir()}
        start = starts["__jump_table"]
        yield start, min((other for other in starts.values() if other > start), default=start)


def main(arguments: list[str]) -> int:
    """Find the places and write them to the emulator. Return the exit code."""
    tracepoints, holds = map(json.loads, arguments)
    try:
        places = find_places(tracepoints, holds)
    except UnfitError as error:
        print(f"inside.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps([asdict(place) for place in places], indent=1))
    tell_emulator(places)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
