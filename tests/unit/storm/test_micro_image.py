# SPDX-License-Identifier: Apache-2.0
"""The guest's memory, decoded here as the processor would decode it."""

import itertools
import mmap
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipitrace.abi.storm import RECEIPT, SEND, StormSendMethod
from ipitrace.base.errors import HostError, UsageError
from ipitrace.measure.guests import micro_guest
from ipitrace.measure.request import WARMUP, RunRequest, check_count, check_request
from ipitrace.storm.micro import image
from ipitrace.storm.micro.driver import MAX_VCPUS, MicroGuest, max_count
from ipitrace.storm.micro.image import GuestMemory, LogSizes, Payload, load_payload
from ipitrace.storm.micro.kvm import SpecialRegisters
from ipitrace.words.scenarios import select_scenarios

N_VCPUS = 3
MIB = 1 << 20
XAPIC = 0xFEE00000


@pytest.fixture(scope="module")
def payload() -> Payload:
    return load_payload()


@pytest.fixture(scope="module")
def memory(payload: Payload) -> GuestMemory:
    return GuestMemory(payload, N_VCPUS, LogSizes(70_000, 70_000))


class Reader:
    """Reads the guest's memory and follows its tables."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory._memory

    def u64(self, at: int) -> int:
        return int(struct.unpack_from("<Q", self._memory, at)[0])

    def translate(self, cr3: int, address: int) -> tuple[int, int] | None:
        """(physical address, flags of every level ANDed), or None: a page fault.

        Four-level paging, SDM vol. 3A, 4.5; only 2 MiB pages are understood.
        """
        table, flags = cr3, ~0
        for level in (39, 30, 21):
            entry = self.u64(table + 8 * (address >> level & 511))
            if not entry & 1:
                return None
            flags &= entry & 7
            table = entry & 0x000FFFFFFFFFF000
            if level == 21:
                assert entry & 0x80, "a 4 KiB page table"
                assert table % (2 * MIB) == 0, "reserved bits"
                cache = entry & 0x18
                return table + address % (2 * MIB), flags | cache
        raise AssertionError

    def gate(self, idt: int, vector: int) -> tuple[int, int, int, int, int]:
        """(offset, selector, type, dpl, present) of a 64-bit gate (SDM vol. 3A, 6.14.1)."""
        low, high = self.u64(idt + 16 * vector), self.u64(idt + 16 * vector + 8)
        offset = low & 0xFFFF | (low >> 48) << 16 | (high & 0xFFFFFFFF) << 32
        assert low >> 32 & 7 == 0, "an IST stack"
        return offset, low >> 16 & 0xFFFF, low >> 40 & 15, low >> 45 & 3, low >> 47 & 1


@pytest.fixture(scope="module")
def reader(memory: GuestMemory) -> Iterator[Reader]:
    return Reader(memory)  # type: ignore[return-value]


def test_all_memory_is_mapped_one_to_one_for_user_mode_and_no_more(
    memory: GuestMemory, reader: Reader
) -> None:
    assert memory.size % (2 * MIB) == 0
    for address in (*range(0, memory.size, MIB // 2), memory.size - 1):
        assert reader.translate(image._PML4, address) == (address, 7), hex(address)
    assert reader.translate(image._PML4, memory.size) is None
    assert reader.translate(image._PML4, 1 << 30) is None
    assert reader.translate(image._PML4, 1 << 39) is None


def test_the_xapic_is_mapped_uncached(reader: Reader) -> None:
    for offset in (0, 0xB0, 0x300, 0x310):
        assert reader.translate(image._PML4, XAPIC + offset) == (XAPIC + offset, 7 | 0x18)
    assert reader.translate(image._PML4, XAPIC + 4 * MIB) is None
    assert reader.translate(image._PML4, XAPIC - 4 * MIB) is None


def descriptor(raw: int) -> dict[str, int]:
    """The bits of a segment descriptor that long mode looks at (SDM vol. 3A, 3.4.5)."""
    return {
        "type": raw >> 40 & 15,
        "s": raw >> 44 & 1,
        "dpl": raw >> 45 & 3,
        "p": raw >> 47 & 1,
        "l": raw >> 53 & 1,
        "db": raw >> 54 & 1,
    }


@pytest.mark.parametrize(
    ("selector", "code", "dpl"),
    [(0x08, True, 0), (0x10, False, 0), (0x1B, False, 3), (0x23, True, 3)],
)
def test_flat_segments(reader: Reader, selector: int, code: bool, dpl: int) -> None:  # noqa: FBT001
    bits = descriptor(reader.u64(image._GDT + (selector & ~7)))
    assert (bits["s"], bits["p"], bits["dpl"]) == (1, 1, dpl)
    assert bool(bits["type"] & 8) == code
    assert bits["type"] & 2, "unreadable or unwritable"
    assert (bits["l"], bits["db"]) == ((1, 0) if code else (0, 1))
    assert selector & 3 == dpl


def start(memory: GuestMemory, index: int, method: StormSendMethod) -> SpecialRegisters:
    special, general = memory.start_state(index, method, SpecialRegisters())
    assert general.rip == image.MG_LOAD
    assert general.rdi == index
    return special


@pytest.mark.parametrize("index", range(N_VCPUS))
def test_every_vcpu_has_its_own_tss_and_stacks(
    memory: GuestMemory, reader: Reader, index: int
) -> None:
    special, general = memory.start_state(index, StormSendMethod.X2APIC, SpecialRegisters())
    low = reader.u64(special.gdt.base + special.tr.selector)
    high = reader.u64(special.gdt.base + special.tr.selector + 8)
    bits = descriptor(low)
    assert (bits["type"], bits["s"], bits["p"]) == (11, 0, 1)
    base = low >> 16 & 0xFFFFFF | (low >> 56) << 24 | high << 32
    assert base == special.tr.base
    assert low & 0xFFFF == special.tr.limit >= 103
    assert special.tr.selector + 15 <= special.gdt.limit
    rsp0 = reader.u64(base + 4)
    others = [s for i in range(N_VCPUS) for s in stacks(memory, reader, i) if i != index]
    assert len({rsp0, general.rsp, *others}) == 2 * N_VCPUS
    assert min(abs(one - other) for one in (rsp0, general.rsp) for other in others) >= 512
    assert rsp0 % 16 == general.rsp % 16 == 0


def stacks(memory: GuestMemory, reader: Reader, index: int) -> tuple[int, int]:
    special, general = memory.start_state(index, StormSendMethod.X2APIC, SpecialRegisters())
    return reader.u64(special.tr.base + 4), general.rsp


def test_every_gate_leads_where_the_payload_says(
    memory: GuestMemory, reader: Reader, payload: Payload
) -> None:
    idt = start(memory, 0, StormSendMethod.X2APIC).idt
    expected = {
        vector: (image.MG_LOAD + payload.exception_entries + 16 * vector, 0x08, 14, 0, 1)
        for vector in range(32)
    }
    # INT3 is a trap gate (interrupts stay on) that user mode may use.
    expected[3] = (image.MG_LOAD + payload.service_entry, 0x08, 15, 3, 1)
    expected[0xF0] = (image.MG_LOAD + payload.target_entry, 0x08, 14, 0, 1)
    expected[0xF1] = (image.MG_LOAD + payload.self_entry, 0x08, 14, 0, 1)
    expected[0xFF] = (image.MG_LOAD + payload.spurious_entry, 0x08, 14, 0, 1)
    present = {v: reader.gate(idt.base, v) for v in range(256) if reader.u64(idt.base + 16 * v)}
    assert present == expected
    assert idt.limit == 256 * 16 - 1


@pytest.mark.parametrize("method", StormSendMethod)
def test_the_control_registers_are_those_of_long_mode(
    memory: GuestMemory, method: StormSendMethod
) -> None:
    first, second = start(memory, 0, method), start(memory, 1, method)
    for special in (first, second):
        assert special.cr0 & 0x80000001 == 0x80000001  # PG, PE
        assert special.cr4 & 0x20  # PAE
        assert not special.cr4 & 0x300000  # SMEP, SMAP: the payload is one image for both modes
        assert special.efer & 0x500 == 0x500  # LME, LMA
        assert special.cr3 == image._PML4
        assert special.apic_base & 0xFFFFF000 == XAPIC
        assert special.apic_base & 0x800
        assert bool(special.apic_base & 0x400) == (method != StormSendMethod.XAPIC)
    assert first.apic_base & 0x100
    assert not second.apic_base & 0x100


def test_the_logs_have_their_places(payload: Payload) -> None:
    memory = GuestMemory(payload, N_VCPUS, LogSizes(1000, 900))
    memory.write_params(send_method=int(StormSendMethod.XAPIC), warmup=1, count=999)
    vcpus = memory.vcpus()
    assert (vcpus["xapic"] == 1).all()
    regions = [(2 * MIB, 1000 * SEND.itemsize)]
    for vcpu in vcpus:
        start_at, end = int(vcpu["next_receipt"]), int(vcpu["end_receipt"])
        assert end - start_at == 900 * RECEIPT.itemsize
        regions.append((start_at, end - start_at))
    for (at, size), (next_at, _) in itertools.pairwise(regions):
        assert at + size <= next_at
    assert sum(regions[-1]) <= memory.size
    assert memory.sends().shape == (1, 1000)
    assert [len(memory.receipts(i)) for i in range(N_VCPUS)] == [0, 0, 0]


def test_what_was_logged_is_copied(payload: Payload) -> None:
    memory = GuestMemory(payload, 2, LogSizes(4, 4))
    memory.write_params(send_method=0)
    at = int(memory.vcpus()["next_receipt"][1])
    struct.pack_into("<3Q", memory._memory, at, 11, 22, 0)
    struct.pack_into("<QQQIHH", memory._memory, 2 * MIB, 1, 2, 3, 0, 1, 0)
    struct.pack_into("<Q", memory._memory, image.MG_VCPUS + 128 + 64, at + 24)
    receipts, sends = memory.receipts(1), memory.sends()
    struct.pack_into("<Q", memory._memory, at, 99)
    struct.pack_into("<Q", memory._memory, 2 * MIB, 99)
    assert receipts.tolist() == [(11, 22, 0)]
    assert sends[0, :1].tolist() == [(1, 2, 3, 0, 1, 0)]


def largest(n_vcpus: int) -> LogSizes:
    most = max_count(n_vcpus)
    return LogSizes(most, most)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mmap fails as it does when memory is short: nothing has to be allocated."""

    class Mmap:
        MAP_SHARED, MAP_ANONYMOUS = mmap.MAP_SHARED, mmap.MAP_ANONYMOUS
        MAP_POPULATE = mmap.MAP_POPULATE

        @staticmethod
        def mmap(*_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(image, "mmap", Mmap)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("n_vcpus", [2, 3, 4, 16, MAX_VCPUS])
def test_the_largest_storm_fits_the_guest(payload: Payload, n_vcpus: int) -> None:
    with pytest.raises(HostError, match="emory") as raised:
        GuestMemory(payload, n_vcpus, largest(n_vcpus))
    assert "the limit is" not in raised.value.message


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("n_vcpus", [4, 16, MAX_VCPUS])
def test_a_storm_beyond_the_guest_is_refused(payload: Payload, n_vcpus: int) -> None:
    most = max_count(n_vcpus)
    beyond = most + most // 100  # max_count leaves less than 1 % unused
    with pytest.raises(HostError, match="the limit is 1024 MiB"):
        GuestMemory(payload, n_vcpus, LogSizes(beyond, beyond))


def request(count: int) -> RunRequest:
    return RunRequest(select_scenarios(["self"]), count, None, trace=False)


@pytest.mark.parametrize("n_vcpus", [2, 4, MAX_VCPUS])
def test_one_more_than_the_largest_count_is_refused(n_vcpus: int, payload: Payload) -> None:
    most = max_count(n_vcpus) - WARMUP
    guest = MicroGuest(n_vcpus, None, payload)
    check_count(request(most), guest)
    with pytest.raises(UsageError, match=f"--count {most + 1} is out of range") as raised:
        check_count(request(most + 1), guest)
    assert f"1 to {most:,}" in raised.value.hint


@pytest.mark.parametrize("n_vcpus", [-1, 0, 1, MAX_VCPUS + 1])
def test_vcpus_out_of_range(n_vcpus: int) -> None:
    with pytest.raises(UsageError, match=f"cannot have {n_vcpus} vCPUs"):
        micro_guest(n_vcpus)


@pytest.mark.parametrize("pace", [-1, 1_000_000_001])
def test_a_pace_out_of_range(pace: int) -> None:
    with pytest.raises(UsageError, match="--pace"):
        check_request(replace(request(1), pace_cycles=pace))
    check_request(replace(request(1), pace_cycles=0))


@pytest.mark.parametrize("rate", [1e-300, 1e-12, 0.0009])
def test_a_rate_whose_pace_the_guest_cannot_hold(rate: float) -> None:
    with pytest.raises(UsageError, match=r"--max-rate .* is out of range"):
        check_request(replace(request(1), max_rate_hz=rate))
    check_request(replace(request(1), max_rate_hz=0.001))
    check_request(replace(request(1), max_rate_hz=0.0))


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_that_no_reader_takes(seed: int) -> None:
    with pytest.raises(UsageError, match="--seed"):
        check_request(replace(request(1), seed=seed))
    check_request(replace(request(1), seed=(1 << 64) - 1))


def test_a_run_of_nothing() -> None:
    with pytest.raises(UsageError, match="No scenario"):
        check_request(replace(request(1), scenarios=()))


def test_what_is_not_our_payload_is_refused(tmp_path: Path, payload: Payload) -> None:
    path = tmp_path / "microguest.bin"
    whole = payload.image
    other_version = struct.pack("<I", struct.unpack_from("<I", whole, 16)[0] + 1)
    for bad in (
        b"",
        b"short",
        whole[:-1],
        whole + b"\0",
        whole[:8] + b"nonsense" + whole[16:],
        whole[:16] + other_version + whole[20:],
        b"\x7fELF" * 100,
    ):
        path.write_bytes(bad)
        with pytest.raises(HostError, match="not a") as raised:
            load_payload(path)
        assert str(path) in raised.value.message
        assert "make -C" in raised.value.hint
    path.write_bytes(whole)
    assert load_payload(path) == payload


def test_a_payload_that_was_never_built(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be read") as raised:
        load_payload(tmp_path / "microguest.bin")
    assert f"make -C {tmp_path}" in raised.value.hint


def test_each_sender_has_a_log_of_its_own(payload: Payload) -> None:
    memory = GuestMemory(payload, 2, LogSizes(3, 4, senders=2))
    memory.write_params(send_method=0)
    struct.pack_into("<Q", memory._memory, 2 * MIB + 3 * SEND.itemsize, 77)
    assert memory.sends()["send_tsc"].tolist() == [[0, 0, 0], [77, 0, 0]]
    assert int(memory.vcpus()["next_receipt"][0]) >= 2 * MIB + 6 * SEND.itemsize
