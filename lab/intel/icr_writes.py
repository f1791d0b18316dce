# SPDX-License-Identifier: Apache-2.0
"""Runs on the emulated host: every kind of ICR write, and what the CPU and KVM make of it.

Each case is a fresh VM. Its vCPU 0 writes the same value to its ICR, again and again, with
interrupts disabled; vCPU 1 exists and never runs. For each case a line of JSON has the exits by
reason, the vectors that were requested from each vCPU, and the host's posted-interrupt
notifications.
"""

import fcntl
import json
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, c_char
from dataclasses import dataclass
from pathlib import Path

from ipitrace.storm.micro.kvm import ExitReason, KvmVcpu, Registers, Segment, Vm

WRITES = 20
VECTOR = 0x40
ICR, SELF_IPI = 0x830, 0x83F
SENDER, TARGET = range(2)

LOWEST_PRIORITY, NMI = 0x100, 0x400  # SDM vol. 3A, 11.6.1: bits of the ICR
LOGICAL, UNUSED, RESERVED, ASSERT, LEVEL = 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15
TO_SELF, TO_ALL, TO_OTHERS = 1 << 18, 2 << 18, 3 << 18

PORT = 0x10
CODE = 0x1000
WRITE_MSR = bytes.fromhex("0f30 4e 75fb e610")  # 1: wrmsr; dec esi; jnz 1b; out al, 0x10
WRITE_MEMORY = bytes.fromhex(
    "89bb10030000 898300030000 4e 75f1 e610"  # 1: mov [ebx+0x310], edi; mov [ebx+0x300], eax; ...
)
PROTECTED_MODE = 0x11
APIC_BASE, X2APIC, BOOT_CPU = 0xFEE00800, 1 << 10, 1 << 8
GET_LAPIC, SET_LAPIC, LAPIC_SIZE = 0x8400AE8E, 0x4400AE8F, 1024
LOGICAL_ID, SPURIOUS, ENABLED, REQUESTS = 0xD0, 0xF0, 0x1FF, 0x200

TRACING = Path("/sys/kernel/tracing")


@dataclass(frozen=True)
class Case:
    """One value for the ICR.

    Attributes:
        name: what it is.
        low: the lower half.
        to: the destination: bits 31:0 of the MSR's upper half, bits 31:24 of the memory's.
        msr: the MSR that is written.
    """

    name: str
    low: int = VECTOR
    to: int = TARGET
    msr: int = ICR


CASES = (
    Case("fixed"),
    Case("fixed, level assert", VECTOR | ASSERT),
    Case("to itself by its id", to=SENDER),
    Case("SELF_IPI", to=0, msr=SELF_IPI),
    Case("to self by shorthand", VECTOR | TO_SELF),
    Case("to all by shorthand", VECTOR | TO_ALL),
    Case("to all others by shorthand", VECTOR | TO_OTHERS),
    Case("logical", VECTOR | LOGICAL, to=1 << TARGET),
    Case("lowest priority", VECTOR | LOWEST_PRIORITY),
    Case("NMI", NMI),
    Case("level-triggered", VECTOR | LEVEL | ASSERT),
    Case("vector 15", 15),
    Case("bit 12", VECTOR | UNUSED),
    Case("reserved bit 13", VECTOR | RESERVED),
    Case("to a vCPU that does not exist", to=2),
    Case("to an id beyond the table", to=1 << 16),  # the index of its last entry has 16 bits
    Case("to all by destination", to=0xFFFFFFFF),
)
BY_MEMORY = (
    Case("fixed"),
    Case("to itself by its id", to=SENDER),
    Case("to self by shorthand", VECTOR | TO_SELF),
    Case("to all others by shorthand", VECTOR | TO_OTHERS),
    Case("logical", VECTOR | LOGICAL, to=1 << TARGET),
    Case("vector 15", 15),
    Case("to a vCPU that does not exist", to=2),
    Case("to all by destination", to=0xFF),
)


def prepare(vcpu: KvmVcpu, index: int, *, x2apic: bool) -> None:
    """Flat protected mode at CODE, with its APIC enabled."""
    special = vcpu.special_registers()
    special.cs = Segment(0, 0xFFFFFFFF, 0x08, 11, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(special, name, Segment(0, 0xFFFFFFFF, 0x10, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0))
    special.cr0 = PROTECTED_MODE
    special.apic_base = APIC_BASE | (X2APIC if x2apic else 0) | (0 if index else BOOT_CPU)
    vcpu.set_special_registers(special)
    page = lapic(vcpu)
    page[SPURIOUS : SPURIOUS + 4] = ENABLED.to_bytes(4, "little")
    if not x2apic:
        page[LOGICAL_ID + 3] = 1 << index
    fcntl.ioctl(vcpu.fd, SET_LAPIC, page)


def lapic(vcpu: KvmVcpu) -> bytearray:
    """The registers of a vCPU's APIC, with what was posted to it."""
    page = bytearray(LAPIC_SIZE)
    fcntl.ioctl(vcpu.fd, GET_LAPIC, page)
    return page


def requested(vcpu: KvmVcpu) -> list[int]:
    """The vectors in a vCPU's IRR."""
    page = lapic(vcpu)
    return [v for v in range(256) if page[REQUESTS + v // 32 * 16 + v % 32 // 8] >> v % 8 & 1]


@contextmanager
def exits_traced() -> Iterator[Counter[str]]:
    """Count the exits of this thread's vCPU by reason; the counts are there at the end."""
    counts: Counter[str] = Counter()
    (TRACING / "trace").write_text("")
    (TRACING / "events/kvm/kvm_exit/enable").write_text("1")
    try:
        yield counts
    finally:
        (TRACING / "events/kvm/kvm_exit/enable").write_text("0")
        counts.update(re.findall(r"kvm_exit: .*reason (\w+)", (TRACING / "trace").read_text()))


def notifications() -> Counter[str]:
    """The host's posted-interrupt interrupts so far."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    rows = {words[0].rstrip(":"): words[1:] for words in map(str.split, lines)}
    return Counter({row: sum(int(n) for n in rows[row] if n.isdecimal()) for row in ("PIN", "PIW")})


def write(case: Case, *, x2apic: bool) -> dict[str, object]:
    """Run one VM; return what is printed."""
    memory = mmap.mmap(-1, 0x4000)
    code = WRITE_MSR if x2apic else WRITE_MEMORY
    memory[CODE : CODE + len(code)] = code
    vm = Vm()
    vm.set_memory(addressof(c_char.from_buffer(memory)), len(memory))
    vcpus = [vm.create_vcpu(index) for index in (SENDER, TARGET)]
    for index, vcpu in enumerate(vcpus):
        prepare(vcpu, index, x2apic=x2apic)
    sender = vcpus[SENDER]
    sender.set_registers(
        Registers(
            rip=CODE,
            rflags=2,
            rax=case.low,
            rdx=case.to,
            rcx=case.msr,
            rbx=APIC_BASE & ~0xFFF,
            rdi=(case.to << 24) & 0xFFFFFFFF,
            rsi=WRITES,
        )
    )
    before = notifications()
    with exits_traced() as exits:
        sender.run()
    told: dict[str, object] = {
        "case": case.name,
        "by": "MSR" if x2apic else "memory",
        "writes": WRITES,
        "ended": ExitReason(sender.exit_reason).name,
        "exits": dict(exits),
        "requested": [requested(vcpu) for vcpu in vcpus],
        "notifications": dict(notifications() - before),
    }
    for vcpu in vcpus:
        vcpu.close()
    vm.close()
    return told


def main() -> None:
    """Run all cases."""
    for case in CASES:
        print(json.dumps(write(case, x2apic=True)))
    for case in BY_MEMORY:
        print(json.dumps(write(case, x2apic=False)))


main()
