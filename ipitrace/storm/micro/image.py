# SPDX-License-Identifier: Apache-2.0
"""The micro-guest's memory: page tables, descriptor tables, payload, parameters, logs.

Addresses named MG_* are defined in guest-tools/microguest/microguest.h (tests/contract compares
them). The tables below 64 KiB are defined by the VMM only.
"""

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.storm import ABI_VERSION, PARAMS, RECEIPT, SEND, STATUS, StormSendMethod
from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.base.resources import guest_tools_dir
from ipitrace.base.units import MIB
from ipitrace.host.memory import require_memory
from ipitrace.storm.micro.kvm import DescriptorTable, Registers, Segment, SpecialRegisters
from ipitrace.storm.micro.passthrough import FOREIGN

MG_LOAD = 0x10000
MG_PARAMS = 0x20000
MG_STATUS = 0x20100
MG_START = 0x20180
MG_FOREIGN = 0x201C0
MG_VCPUS = 0x21000
MG_HV_PAGE = 0x2E000
MG_HV_CALL = 0x2F000
MG_VCPU_SIZE = 128
MG_MAX_VCPUS = 64
MG_READY = 1
MG_READY_PREEMPTED = 2
MG_VECTOR_TARGET = 0xF0
MG_VECTOR_SELF = 0xF1
MG_VECTOR_SPURIOUS = 0xFF
MG_KERNEL_CS = 0x08
MG_KERNEL_DS = 0x10
MG_USER_DS = 0x1B
MG_USER_CS = 0x23
MG_PORT = 0x501
MG_XAPIC_BASE = 0xFEE00000
MG_DESCRIPTORS = 0xFE000000

VCPU = np.dtype(
    [
        ("handled", "<u8"),
        ("ready", "<u8"),
        ("phase", "<u8"),
        ("pad1", "<u8", (5,)),
        ("next_receipt", "<u8"),
        ("end_receipt", "<u8"),
        ("xapic", "<u8"),
        ("stack", "<u8"),
        ("descriptors", "<u8"),
        ("vmmcall", "<u8"),
        ("pad2", "<u8", (2,)),
    ]
)
"""struct mg_vcpu."""

_PML4, _PDPT, _PD_LOW, _PD_HIGH = 0x1000, 0x2000, 0x3000, 0x4000
_GDT, _IDT, _TSS, _TSS_SIZE = 0x5000, 0x6000, 0x7000, 0x80
_STACKS, _STACK_SIZE = 0x30000, 0x1000  # per vCPU: upper half its stack, lower half TSS.RSP0
_LOGS = 2 * MIB
_PAGE = 4096
_LARGE_PAGE = 2 * MIB
MAX_MEMORY = 1024 * MIB  # the range of one page directory

# Intel SDM vol. 3A, 4.5: present, writable, user, write-through, no cache,
# accessed, dirty, page size.
_TABLE = 0x07
_LARGE = 0x67 | 0x80
_UNCACHED = 0x18
_FIRST_TSS_SELECTOR = 0x30
_GATE_INTERRUPT = 0x8E00
_TRAP_GATE_FROM_USER = 0xEF00
_BREAKPOINT = 3
_EXCEPTIONS = 32
_EXCEPTION_STRIDE = 16

# CR0: PG AM WP NE ET MP PE; CR4: OSXMMEXCPT OSFXSR PAE; EFER: NXE LMA LME SCE
# (SDM vol. 3A, 2.5 and 2.2.1).
_CR0 = 0x80050033
_CR4 = 0x620
_EFER = 0xD01
_APIC_BASE_ENABLED = MG_XAPIC_BASE | 0x800
_APIC_BASE_X2APIC = 0x400
_APIC_BASE_BSP = 0x100
_RFLAGS_FIXED = 2

_HEADER = struct.Struct("<8x8s9I")


@dataclass(frozen=True)
class Payload:
    """The built payload and the entry points in its header (offsets from MG_LOAD)."""

    image: bytes
    target_entry: int
    self_entry: int
    spurious_entry: int
    service_entry: int
    exception_entries: int
    burning_target_entry: int
    burning_self_entry: int

    @property
    def sha256(self) -> str:
        """The payload's checksum, for the fingerprint."""
        return hashlib.sha256(self.image).hexdigest()


def load_payload(path: Path | None = None) -> Payload:
    """Read the payload built from guest-tools/microguest.

    Raises:
            HostError: it was not built, or has another version than this package.
    """
    path = path or guest_tools_dir() / "microguest" / "microguest.bin"
    hint = f"Build it: make -C {path.parent}"
    try:
        image = path.read_bytes()
    except OSError as error:
        raise HostError(f"The micro-guest's payload cannot be read: {error}.", hint) from error
    if len(image) < _HEADER.size:
        raise HostError(f"{path} is not a micro-guest payload: {len(image)} bytes.", hint)
    magic, version, *entries, size = _HEADER.unpack_from(image)
    if magic != b"ipitrace" or version != ABI_VERSION or size != len(image):
        raise HostError(f"{path} is not a payload of ABI version {ABI_VERSION}.", hint)
    return Payload(image, *entries)


@dataclass(frozen=True)
class LogSizes:
    """The sizes of the guest's logs, in records; `sends` are those of each sender."""

    sends: int
    receipts_per_vcpu: int
    senders: int = 1


@dataclass(frozen=True)
class SendingPlaces:
    """Offsets in the guest's memory of the sender's progress; each value has 8 bytes.

    Attributes:
        ready: a field of the target's struct mg_vcpu.
        sent: the number of sends that were acknowledged or timed out.
        first_sent_tsc: not 0 after the first send.
        step: from one send's sent_tsc to the next send's.
    """

    ready: int
    sent: int
    first_sent_tsc: int
    step: int


class GuestMemory:
    """The guest's memory: built and read here, and given to KVM by its address."""

    def __init__(self, payload: Payload, n_vcpus: int, logs: LogSizes) -> None:
        """Allocate the memory and build its content.

        Raises:
            HostError: the logs do not fit into the guest, or there is not enough memory.
        """
        self._n_vcpus = n_vcpus
        self._sends_at = _LOGS
        self._n_sends = (logs.senders, logs.sends)
        self._n_receipts = logs.receipts_per_vcpu
        receipts_at = _round_up(self._sends_at + logs.senders * logs.sends * SEND.itemsize, _PAGE)
        self._receipts_step = _round_up(logs.receipts_per_vcpu * RECEIPT.itemsize, _PAGE)
        self._receipts_at = receipts_at
        self.size = _round_up(receipts_at + n_vcpus * self._receipts_step, _LARGE_PAGE)
        if self.size > MAX_MEMORY:
            raise HostError(
                f"The logs of this storm need {self.size // MIB} MiB of guest memory; "
                f"the limit is {MAX_MEMORY // MIB} MiB.",
                "Ask for a smaller --count, or fewer vCPUs.",
            )
        require_memory(self.size, "The guest")
        try:
            self._memory = mmap.mmap(
                -1, self.size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            )
        except OSError as error:
            raise HostError(
                f"No memory for a guest of {self.size // MIB} MiB: {error.strerror}.",
                "Free memory, or ask for a smaller --count.",
            ) from error
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        self.host_address = int(self._bytes.ctypes.data)
        self._payload = payload
        self._memory[MG_LOAD : MG_LOAD + len(payload.image)] = payload.image
        self._build_page_tables()
        self._build_descriptors(payload)

    def open(self) -> int:
        """Open a new descriptor of the memory, which another process can map.

        Raises:
            OSError: not permitted (needs CAP_SYS_ADMIN: proc_pid_map_files(5)).
        """
        where = f"{self.host_address:x}-{self.host_address + self.size:x}"
        return os.open(f"/proc/self/map_files/{where}", os.O_RDWR | os.O_CLOEXEC)

    def _put(self, at: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, self._memory, at, *values)

    def _build_page_tables(self) -> None:
        """Map memory, the xAPIC and the descriptors 1:1, for kernel and user mode."""
        self._put(_PML4, "Q", _PDPT | _TABLE)
        self._put(_PDPT, "Q", _PD_LOW | _TABLE)
        self._put(_PDPT + 8 * (MG_XAPIC_BASE >> 30), "Q", _PD_HIGH | _TABLE)
        for i in range(self.size // _LARGE_PAGE):
            self._put(_PD_LOW + 8 * i, "Q", i * _LARGE_PAGE | _LARGE)
        for address, how in ((MG_XAPIC_BASE, _LARGE | _UNCACHED), (MG_DESCRIPTORS, _LARGE)):
            entry = _PD_HIGH + 8 * (address // _LARGE_PAGE % 512)
            self._put(entry, "Q", address & -_LARGE_PAGE | how)

    def _build_descriptors(self, payload: Payload) -> None:
        """GDT (flat segments, one TSS per vCPU), IDT and the TSSs' ring-0 stacks."""
        flat = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
        self._put(_GDT, "5Q", *flat)
        for i in range(self._n_vcpus):
            base = _TSS + i * _TSS_SIZE
            low, middle, high = base & 0xFFFF, base >> 16 & 0xFF, base >> 24 & 0xFF
            self._put(
                _GDT + _FIRST_TSS_SELECTOR + 16 * i,
                "HHBBBBII",
                *(_TSS_SIZE - 1, low, middle, 0x8B, 0, high, 0, 0),
            )
            self._put(base + 4, "Q", self._stack_top(i) - _STACK_SIZE // 2)
        for vector in range(_EXCEPTIONS):
            self._gate(vector, payload.exception_entries + vector * _EXCEPTION_STRIDE)
        self._gate(_BREAKPOINT, payload.service_entry, _TRAP_GATE_FROM_USER)
        self._gate(MG_VECTOR_TARGET, payload.target_entry)
        self._gate(MG_VECTOR_SELF, payload.self_entry)
        self._gate(MG_VECTOR_SPURIOUS, payload.spurious_entry)

    def _gate(self, vector: int, entry: int, kind: int = _GATE_INTERRUPT) -> None:
        at = MG_LOAD + entry
        self._put(
            _IDT + 16 * vector,
            "HHHHII",
            *(at & 0xFFFF, MG_KERNEL_CS, kind, at >> 16 & 0xFFFF, at >> 32, 0),
        )

    @staticmethod
    def _stack_top(index: int) -> int:
        return _STACKS + _STACK_SIZE * (index + 1) - 16

    def start_state(
        self, index: int, method: StormSendMethod, template: SpecialRegisters
    ) -> tuple[SpecialRegisters, Registers]:
        """The initial registers of vCPU `index`: long mode, the payload's first byte.

        Args:
            index: the vCPU, which is also its APIC id.
            method: selects x2APIC or xAPIC mode.
            template: the result of KVM_GET_SREGS; it is changed and returned.
        """
        code = Segment(0, 0xFFFFFFFF, MG_KERNEL_CS, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
        data = Segment(0, 0xFFFFFFFF, MG_KERNEL_DS, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        template.cs = code
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(template, name, data)
        tss = _TSS + index * _TSS_SIZE
        selector = _FIRST_TSS_SELECTOR + 16 * index
        template.tr = Segment(tss, _TSS_SIZE - 1, selector, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        template.ldt = Segment(0, 0xFFFF, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0)
        template.gdt = DescriptorTable(_GDT, _FIRST_TSS_SELECTOR + 16 * self._n_vcpus - 1)
        template.idt = DescriptorTable(_IDT, 256 * 16 - 1)
        template.cr0, template.cr3, template.cr4, template.efer = _CR0, _PML4, _CR4, _EFER
        template.apic_base = (
            _APIC_BASE_ENABLED
            | (0 if method == StormSendMethod.XAPIC else _APIC_BASE_X2APIC)
            | (_APIC_BASE_BSP if index == 0 else 0)
        )
        return template, Registers(
            rip=MG_LOAD, rflags=_RFLAGS_FIXED, rdi=index, rsp=self._stack_top(index)
        )

    def write_params(self, **fields: int) -> None:
        """Write struct storm_params and prepare every vCPU's receipt log."""
        params = self._view(MG_PARAMS, PARAMS, 1)[0]
        params["abi_version"] = ABI_VERSION
        params["n_vcpus"] = self._n_vcpus
        params["sends"] = self._sends_at
        for name, value in fields.items():
            params[name] = value
        if fields.get("handler_burn_cycles"):
            self._gate(MG_VECTOR_TARGET, self._payload.burning_target_entry)
            self._gate(MG_VECTOR_SELF, self._payload.burning_self_entry)
        vcpus = self.vcpus()
        vcpus["xapic"] = fields["send_method"] == StormSendMethod.XAPIC
        vcpus["stack"] = [self._stack_top(i) for i in range(self._n_vcpus)]
        starts = self._receipts_at + np.arange(self._n_vcpus) * self._receipts_step
        vcpus["next_receipt"] = starts
        vcpus["end_receipt"] = starts + self._n_receipts * RECEIPT.itemsize

    def write_foreign(
        self, icr_low: int, apic_id: int, count: int, *, emulated: bool = False
    ) -> None:
        """Make a passthrough storm begin with writes to an ICR: struct mg_foreign.

        Args:
            icr_low: the value for the ICR's lower half.
            apic_id: the destination: a physical CPU's, or a vCPU's if `emulated`.
            count: the number of writes.
            emulated: use the guest's own ICR, through MSR_KVM_PASSTHROUGH_IPI_ICR.
        """
        FOREIGN.pack_into(self._memory, MG_FOREIGN, icr_low, apic_id, count, emulated)

    def sending_places(self, target: int) -> SendingPlaces:
        """Where another process reads the sender's progress, and reports that `target` is ready."""
        return SendingPlaces(
            ready=MG_VCPUS + target * MG_VCPU_SIZE + _offset(VCPU, "ready"),
            sent=MG_STATUS + _offset(STATUS, "sent"),
            first_sent_tsc=self._sends_at + _offset(SEND, "sent_tsc"),
            step=SEND.itemsize,
        )

    def status(self) -> np.void:
        """A copy of the present struct storm_status."""
        status: np.void = self._view(MG_STATUS, STATUS, 1).copy()[0]
        return status

    def vcpus(self) -> NDArray[np.void]:
        """struct mg_vcpu of every vCPU; shape (n_vcpus,), shared with the guest."""
        return self._view(MG_VCPUS, VCPU, self._n_vcpus)

    def sends(self) -> NDArray[np.void]:
        """A copy of the senders' complete logs; shape (senders, sends of each)."""
        count = self._n_sends[0] * self._n_sends[1]
        return self._view(self._sends_at, SEND, count).copy().reshape(self._n_sends)

    def receipts(self, index: int) -> NDArray[np.void]:
        """A copy of the log of vCPU `index`.

        Raises:
            MeasurementError: the log's end according to the guest is outside the log.
        """
        at = self._receipts_at + index * self._receipts_step
        used, remainder = divmod(int(self.vcpus()["next_receipt"][index]) - at, RECEIPT.itemsize)
        if remainder or not 0 <= used <= self._n_receipts:
            raise MeasurementError(
                f"The guest's records cannot be true: vCPU {index} reports that its log ends "
                f"{used * RECEIPT.itemsize + remainder} bytes after its start.",
                "Check that the payload belongs to this version of ipitrace.",
            )
        return self._view(at, RECEIPT, used).copy()

    def handled(self) -> tuple[int, ...]:
        """Each vCPU's present count of handler entries."""
        return tuple(self.vcpus()["handled"].tolist())

    def _view(self, at: int, dtype: np.dtype[np.void], count: int) -> NDArray[np.void]:
        return np.frombuffer(self._memory, dtype, count, at)


def _offset(dtype: np.dtype[np.void], field: str) -> int:
    fields = dict(dtype.fields or ())
    return int(fields[field][1])


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
