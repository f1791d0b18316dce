# SPDX-License-Identifier: Apache-2.0
"""The program that runs a VM, and the VM's name and memory from its command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Final

from ipitrace.base.units import KIB, MIB
from ipitrace.vm.confidential import Confidential, confidential


@dataclass(frozen=True)
class Vmm:
    """One kind of VMM, identified by its program's name, and its options.

    `memory_unit` is the unit of a number without a suffix; `memory_options` and `name_options` are
    the options with the VM's memory and name.
    """

    title: str
    program: str
    memory_options: tuple[str, ...] = ()
    memory_unit: int = MIB
    name_options: tuple[str, ...] = ()


_VMMS: Final = (
    Vmm("QEMU", r"qemu-system-.+|qemu-kvm|kvm", ("-m", "--m"), MIB, ("-name", "--name")),
    Vmm("cloud-hypervisor", r"cloud-hypervisor(-.+)?", ("--memory",), 1),
    Vmm("Firecracker", r"firecracker(-.+)?", name_options=("--id",)),
    Vmm("crosvm", r"crosvm", ("--mem", "-m")),
    Vmm("kvmtool", r"lkvm|lkvm-static|kvmtool", ("--mem", "-m"), name_options=("--name",)),
)
_MAY_PROTECT: Final = ("QEMU", "cloud-hypervisor")
_SUFFIXES: Final = {"": 0, "b": 1, "k": KIB, "m": MIB, "g": KIB**3, "t": KIB**4}
_ADDRESS_BITS: Final = 64


@dataclass(frozen=True)
class CommandLine:
    """Data from a VMM's command line; None is not given there."""

    vmm: str
    name: str | None
    uuid: str | None
    memory_bytes: int | None
    confidential: Confidential | None = None


def parse_command_line(program: str, arguments: Sequence[str]) -> CommandLine:
    """Parse a process's `arguments` (argv); `program` is its executable's file name."""
    if _is_ipitrace(arguments):
        return CommandLine("ipitrace", None, None, None)
    for vmm in _VMMS:
        if re.fullmatch(vmm.program, program):
            name = _option(arguments, vmm.name_options)
            memory = _option(arguments, vmm.memory_options)
            return CommandLine(
                vmm.title,
                None if name is None else _subvalue(name, "guest"),
                _option(arguments, ("-uuid", "--uuid")),
                None if memory is None else _bytes(_subvalue(memory, "size"), vmm.memory_unit),
                confidential(arguments) if vmm.title in _MAY_PROTECT else None,
            )
    return CommandLine(f"unknown VMM ({program})", None, None, None)


def _is_ipitrace(arguments: Sequence[str]) -> bool:
    """Whether Python runs ipitrace, as a module or as a script of that name."""
    as_module = ("-m", "ipitrace") in pairwise(arguments)
    return as_module or any(PurePath(argument).name == "ipitrace" for argument in arguments[:2])


def _option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The value of the last occurrence, as `--name value` or `--name=value`."""
    value = None
    for i, argument in enumerate(arguments):
        name, equals, given = argument.partition("=")
        if name not in names:
            continue
        if equals:
            value = given
        elif i + 1 < len(arguments):
            value = arguments[i + 1]
    return value


def _subvalue(value: str, key: str) -> str | None:
    """`key`'s value in "a,key=b,c=d", or the first part if it has no key.

    A doubled comma is a comma (the rule of QEMU's option lists).
    """
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    for part in parts:
        name, equals, found = part.partition("=")
        if equals and name == key:
            return found
    return parts[0] if "=" not in parts[0] and parts[0] else None


def _bytes(text: str | None, unit: int) -> int | None:
    """An amount of memory; None for invalid text and for more than a 64-bit CPU can address."""
    match = re.fullmatch(r"([0-9]{1,20})([bkmgt]?)(i?b)?", (text or "").lower())
    amount = int(match[1]) * (_SUFFIXES[match[2]] or unit) if match else None
    return None if amount is None or amount >> _ADDRESS_BITS else amount
