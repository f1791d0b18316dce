# SPDX-License-Identifier: Apache-2.0
"""Typed calls for the part of the KVM interface that the micro-guest needs.

Numbers and structures are those of Linux's Documentation/virt/kvm/api.rst and
include/uapi/linux/kvm.h; they are ABI and do not change.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from enum import IntEnum

from ipitrace.base.errors import HostError
from ipitrace.host.access import how_to_open
from ipitrace.storm.micro.passthrough import (
    CAP_X86_PASSTHROUGH_IPI,
    KVM_CPUID_FEATURES,
    KVM_FEATURE_PASSTHROUGH_IPI,
)

API_VERSION = 12

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_GET_SUPPORTED_HV_CPUID = 0xC008AEC1
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_CREATE_IRQCHIP = 0xAE60
_RUN = 0xAE80
_GET_REGS = 0x8090AE81
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_CPUID2 = 0x4008AE90
_SET_MP_STATE = 0x4004AE99
_ENABLE_CAP = 0x4068AEA3
_GET_TSC_KHZ = 0xAEA3
_GET_STATS_FD = 0xAECE
_SET_DEVICE_ATTR = 0x4018AEE1
_GET_DEVICE_ATTR = 0x4018AEE2

_CAP_X2APIC_API = 129
_X2APIC_API_USE_32BIT_IDS = 1
_X2APIC_API_DISABLE_BROADCAST_QUIRK = 2
_CAP_DISABLE_QUIRKS2 = 213
_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
_FEATURE_PV_SEND_IPI = 11
_MP_STATE_RUNNABLE = 0
_CPUID_ENTRIES = 256
_CPUID_ENTRY = struct.Struct("<3I4I12x")
_HYPERVISOR_LEAVES = range(0x4000_0000, 0x5000_0000)  # a guest looks for Hyper-V in the first
_TSS_ADDR = 0x7FFBD000  # three pages below 2 GiB, because CPython's ioctl takes a signed int

_EXIT_IO_OUT = 1
RUN_IMMEDIATE_EXIT = 1  # offsets in struct kvm_run
RUN_EXIT_REASON = 8
RUN_EXIT_DATA = 32


class ExitReason(IntEnum):
    """KVM_EXIT_*: why KVM_RUN returned to user space."""

    UNKNOWN = 0
    IO = 2
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17


class Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("present", ctypes.c_uint8),
        ("dpl", ctypes.c_uint8),
        ("db", ctypes.c_uint8),
        ("s", ctypes.c_uint8),
        ("l", ctypes.c_uint8),
        ("g", ctypes.c_uint8),
        ("avl", ctypes.c_uint8),
        ("unusable", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
    )


class DescriptorTable(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint16),
        ("padding", ctypes.c_uint16 * 3),
    )


class SpecialRegisters(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *(
            (name, ctypes.c_uint64)
            for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
        ),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    )


class Registers(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
        )
    )


class _DeviceAttr(ctypes.Structure):
    """struct kvm_device_attr; zero group and attr are KVM_VCPU_TSC_CTRL / _OFFSET."""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("attr", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    )


def _ioctl(fd: int, what: str, request: int, argument: int | object = 0) -> int:
    """Call one ioctl; a failure becomes a HostError that names the call."""
    try:
        if isinstance(argument, int):
            return fcntl.ioctl(fd, request, argument)
        return fcntl.ioctl(fd, request, argument, True)  # type: ignore[call-overload,no-any-return]  # noqa: FBT003
    except OSError as error:
        raise HostError(
            f"KVM refused {what}: {error.strerror or error}.",
            "See dmesg for KVM's reason, and check that /dev/kvm is the kernel's device.",
        ) from error


def _read_cpuid(fd: int, what: str, request: int) -> bytes:
    """A struct kvm_cpuid2 that KVM fills."""
    buffer = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY.size)
    struct.pack_into("<I", buffer, 0, _CPUID_ENTRIES)
    _ioctl(fd, what, request, buffer)
    return bytes(buffer)


class KvmVcpu:
    """One vCPU: its file descriptor and its mapped struct kvm_run."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self.run_area = mmap.mmap(fd, run_size)

    def run(self) -> None:
        """Run the guest until it needs user space.

        Raises:
            InterruptedError: a signal arrived, or an immediate exit was requested.
            OSError: KVM cannot continue.
        """
        fcntl.ioctl(self.fd, _RUN, 0)

    def ask_immediate_exit(self) -> None:
        """Make the next KVM_RUN return immediately, or with a signal the present one."""
        self.run_area[RUN_IMMEDIATE_EXIT] = 1

    @property
    def exit_reason(self) -> int:
        """Why the last KVM_RUN returned: an ExitReason if the number is known."""
        return int(struct.unpack_from("<I", self.run_area, RUN_EXIT_REASON)[0])

    def io_exit(self) -> tuple[int, int | None]:
        """(port, byte) of an ExitReason.IO; the byte is None unless one byte was written."""
        direction, size, port, count, offset = struct.unpack_from(
            "<BBHIQ", self.run_area, RUN_EXIT_DATA
        )
        one_written = (direction, size, count) == (_EXIT_IO_OUT, 1, 1)
        return port, self.run_area[offset] if one_written else None

    def exit_words(self, count: int) -> tuple[int, ...]:
        """The first `count` 64-bit words of the exit's data, for messages."""
        return struct.unpack_from(f"<{count}Q", self.run_area, RUN_EXIT_DATA)

    def registers(self) -> Registers:
        """Read the general registers."""
        registers = Registers()
        _ioctl(self.fd, "KVM_GET_REGS", _GET_REGS, registers)
        return registers

    def set_registers(self, registers: Registers) -> None:
        """Write the general registers."""
        _ioctl(self.fd, "KVM_SET_REGS", _SET_REGS, registers)

    def special_registers(self) -> SpecialRegisters:
        """Read segments, tables and control registers."""
        registers = SpecialRegisters()
        _ioctl(self.fd, "KVM_GET_SREGS", _GET_SREGS, registers)
        return registers

    def set_special_registers(self, registers: SpecialRegisters) -> None:
        """Write segments, tables and control registers."""
        _ioctl(self.fd, "KVM_SET_SREGS", _SET_SREGS, registers)

    def set_cpuid(self, cpuid: bytes) -> None:
        """Set the results of CPUID (struct kvm_cpuid2)."""
        _ioctl(self.fd, "KVM_SET_CPUID2", _SET_CPUID2, bytearray(cpuid))

    def hyperv_cpuid(self) -> bytes:
        """The leaves of CPUID with which KVM offers Hyper-V's interface (struct kvm_cpuid2)."""
        return _read_cpuid(self.fd, "KVM_GET_SUPPORTED_HV_CPUID", _GET_SUPPORTED_HV_CPUID)

    def set_runnable(self) -> None:
        """Let an application processor run without waiting for a SIPI."""
        _ioctl(
            self.fd,
            "KVM_SET_MP_STATE",
            _SET_MP_STATE,
            bytearray(struct.pack("<I", _MP_STATE_RUNNABLE)),
        )

    def tsc_khz(self) -> int | None:
        """The guest TSC's frequency according to KVM, or None if KVM does not report it."""
        try:
            return int(fcntl.ioctl(self.fd, _GET_TSC_KHZ, 0)) or None
        except OSError:
            return None

    def tsc_offset(self) -> int | None:
        """Guest TSC minus scaled host TSC (signed), or None before Linux's 828ca89628bf (5.16)."""
        value = ctypes.c_int64(0)
        return value.value if self._tsc_offset_attr(_GET_DEVICE_ATTR, value) else None

    def set_tsc_offset(self, offset: int) -> bool:
        """Request a TSC offset; False if the attribute does not exist."""
        return self._tsc_offset_attr(_SET_DEVICE_ATTR, ctypes.c_int64(offset))

    def _tsc_offset_attr(self, request: int, value: ctypes.c_int64) -> bool:
        attr = _DeviceAttr(addr=ctypes.addressof(value))
        try:
            fcntl.ioctl(self.fd, request, attr)
        except OSError:
            return False
        return True

    def stats_fd(self) -> int | None:
        """Open the vCPU's KVM statistics, or None before Linux's ce55c049459c (5.14)."""
        try:
            return int(fcntl.ioctl(self.fd, _GET_STATS_FD, 0))
        except OSError:
            return None

    def close(self) -> None:
        """Unmap and close; the VM is destroyed when all its descriptors are closed."""
        self.run_area.close()
        os.close(self.fd)


class Vm:
    """One KVM virtual machine with in-kernel APICs and one memory slot."""

    def __init__(self) -> None:
        """Open /dev/kvm and create the VM.

        Raises:
                HostError: /dev/kvm is missing, not permitted, or not the KVM device.
        """
        self._descriptors = contextlib.ExitStack()
        with contextlib.ExitStack() as until_whole:
            self._kvm_fd = _open_kvm()
            until_whole.callback(os.close, self._kvm_fd)
            self.fd = _create_vm(self._kvm_fd)
            until_whole.callback(os.close, self.fd)
            self._set_up()
            self._descriptors = until_whole.pop_all()

    def _set_up(self) -> None:
        _ioctl(self.fd, "KVM_SET_TSS_ADDR", _SET_TSS_ADDR, _TSS_ADDR)
        _ioctl(self.fd, "KVM_CREATE_IRQCHIP", _CREATE_IRQCHIP)
        flags = _X2APIC_API_USE_32BIT_IDS | _X2APIC_API_DISABLE_BROADCAST_QUIRK
        enable = struct.pack("<IIQ", _CAP_X2APIC_API, 0, flags).ljust(104, b"\0")
        _ioctl(self.fd, "KVM_ENABLE_CAP(X2APIC_API)", _ENABLE_CAP, bytearray(enable))
        self._cpuid = _read_cpuid(self._kvm_fd, "KVM_GET_SUPPORTED_CPUID", _GET_SUPPORTED_CPUID)
        self._features = 0  # additional features of KVM's CPUID leaf
        self._hyperv = False
        self._run_size = _ioctl(self._kvm_fd, "KVM_GET_VCPU_MMAP_SIZE", _GET_VCPU_MMAP_SIZE)

    def set_memory(self, host_address: int, size: int) -> None:
        """Map `size` bytes at `host_address` to guest physical address 0."""
        region = struct.pack("<IIQQQ", 0, 0, 0, size, host_address)
        _ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", _SET_USER_MEMORY_REGION, bytearray(region))

    def enable_passthrough(self, guest_address: int, n_vcpus: int) -> None:
        """Map the posted-interrupt descriptors of vCPUs 0 to n_vcpus - 1, before vCPUs are created.

        Raises:
            HostError: the host does not offer it, or this process may not reboot the machine.
        """
        enable = struct.pack("<IIQQ", CAP_X86_PASSTHROUGH_IPI, 0, guest_address, n_vcpus)
        enable = enable.ljust(104, b"\0")
        _ioctl(self.fd, "KVM_ENABLE_CAP(X86_PASSTHROUGH_IPI)", _ENABLE_CAP, bytearray(enable))
        self._features |= 1 << KVM_FEATURE_PASSTHROUGH_IPI

    def keep_hypercalls(self) -> None:
        """Let a hypercall instruction that this CPU does not have fault, before vCPUs are created.

        Otherwise KVM replaces it and executes it again: for ever, where KVM's emulator executes
        hypercalls. Kernels before Linux's f1a9761fbb00 (5.19) always replace it.
        """
        disable = struct.pack("<IIQ", _CAP_DISABLE_QUIRKS2, 0, _QUIRK_FIX_HYPERCALL_INSN)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.fd, _ENABLE_CAP, bytearray(disable.ljust(104, b"\0")), True)  # noqa: FBT003

    @property
    def offers_pv_ipis(self) -> bool:
        """KVM's CPUID leaf has KVM_FEATURE_PV_SEND_IPI."""
        for at in _entries(self._cpuid):
            function, _index, _flags, eax, *_others = _CPUID_ENTRY.unpack_from(self._cpuid, at)
            if function == KVM_CPUID_FEATURES:
                return bool(eax >> _FEATURE_PV_SEND_IPI & 1)
        return False

    def enable_hyperv(self) -> None:
        """Offer Hyper-V's interface to the guest, before vCPUs are created."""
        self._hyperv = True

    def create_vcpu(self, index: int) -> KvmVcpu:
        """Create vCPU `index`, whose APIC id is the same number."""
        fd = _ioctl(self.fd, "KVM_CREATE_VCPU", _CREATE_VCPU, index)
        vcpu = KvmVcpu(fd, self._run_size)
        try:
            cpuid = _cpuid_of(self._cpuid, index, self._features)
            vcpu.set_cpuid(_with_hyperv(cpuid, vcpu.hyperv_cpuid()) if self._hyperv else cpuid)
        except HostError:
            vcpu.close()
            raise
        return vcpu

    def close(self) -> None:
        """Close the VM's descriptors."""
        self._descriptors.close()


def _open_kvm() -> int:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostError(
            "/dev/kvm does not exist, so no guest can run on this host.",
            "Load the module (modprobe kvm_intel or kvm_amd) and check that virtualisation is "
            "enabled in the firmware; for a container, pass the device to it.",
        ) from None
    except PermissionError:
        raise HostError(
            "/dev/kvm may not be opened by this user.", how_to_open("/dev/kvm")
        ) from None
    except OSError as error:
        raise HostError(
            f"/dev/kvm cannot be opened: {error.strerror}.",
            "Check that the KVM module for this CPU is loaded (lsmod | grep kvm).",
        ) from error
    try:
        version = fcntl.ioctl(fd, _GET_API_VERSION, 0)
    except OSError:
        version = None
    if version != API_VERSION:
        os.close(fd)
        raise HostError(
            f"/dev/kvm does not have KVM API version {API_VERSION}.",
            "Check that /dev/kvm is the kernel's device (ls -l /dev/kvm: 10, 232).",
        )
    return fd


def _create_vm(kvm_fd: int) -> int:
    while True:
        try:
            return int(fcntl.ioctl(kvm_fd, _CREATE_VM, 0))
        except InterruptedError:
            continue
        except OSError as error:
            busy = error.errno == errno.EBUSY
            raise HostError(
                f"KVM refused to create a VM: {error.strerror}.",
                "Another hypervisor uses the CPU's virtualisation; stop it first."
                if busy
                else "See dmesg for KVM's reason.",
            ) from error


def _entries(cpuid: bytes) -> Iterable[int]:
    return (8 + i * _CPUID_ENTRY.size for i in range(struct.unpack_from("<I", cpuid)[0]))


def _cpuid_of(supported: bytes, apic_id: int, features: int) -> bytes:
    """The results of CPUID on the vCPU with this APIC id: with x2APIC, and with its own ids.

    `features` are added to the features of KVM's own leaf.

    Leaf 1: EBX 31..24 initial APIC id, ECX 21 x2APIC; leaves 0Bh and 1Fh: EDX
    x2APIC id (SDM vol. 2A, CPUID).
    """
    cpuid = bytearray(supported)
    for at in _entries(supported):
        function, index, flags, eax, ebx, ecx, edx = _CPUID_ENTRY.unpack_from(cpuid, at)
        if function == 1:
            ebx = ebx & 0x00FF_FFFF | apic_id << 24
            ecx |= 1 << 21
        elif function in {0x0B, 0x1F}:
            edx = apic_id
        elif function == KVM_CPUID_FEATURES:
            eax |= features
        _CPUID_ENTRY.pack_into(cpuid, at, function, index, flags, eax, ebx, ecx, edx)
    return bytes(cpuid)


def _with_hyperv(cpuid: bytes, hyperv: bytes) -> bytes:
    """These results of CPUID, with Hyper-V's leaves instead of KVM's own."""
    kept = [
        whole[at : at + _CPUID_ENTRY.size]
        for whole in (cpuid, hyperv)
        for at in _entries(whole)
        if whole is hyperv or struct.unpack_from("<I", whole, at)[0] not in _HYPERVISOR_LEAVES
    ]
    return struct.pack("<II", len(kept), 0) + b"".join(kept)
