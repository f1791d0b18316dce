# SPDX-License-Identifier: Apache-2.0
"""Programs for events that no machine here has: the kernel runs them with arguments made up.

BPF_PROG_TEST_RUN runs a raw tracepoint's program in the calling thread, with the arguments of the
tracepoint's prototype (Documentation/bpf/bpf_prog_run.rst). The program, its maps and the thread
are real; AVIC and Xen are not.
"""

import ctypes
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ipitrace.host.bpf_call import bpf
from ipitrace.tracer import Tracer
from ipitrace.tracer.counting import Counting
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.watch.model import Count
from ipitrace.watch.traffic import Traffic, traffic
from ipitrace.words.events import Kind

pytestmark = pytest.mark.live("root", "bpf")

PROG_TEST_RUN = 10  # enum bpf_cmd, include/uapi/linux/bpf.h
VECTOR, TARGET, ICR = 0xF0, 1, 0x300
N_CELLS = 64


class Run(ctypes.Structure):
    """The part of union bpf_attr that BPF_PROG_TEST_RUN uses."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
    )


def run(program_fd: int, event: str, **values: int) -> None:
    """Run the program with these arguments, in the order of the newest prototype; others are 0."""
    prototypes = EVENT_BY_NAME[event].prototypes or ("",)
    names = [part.split(":")[0] for part in prototypes[0].split()]
    assert values.keys() <= set(names)
    arguments = (ctypes.c_uint64 * 12)(*(values.get(name, 0) for name in names))
    bpf(
        PROG_TEST_RUN,
        Run(
            prog_fd=program_fd,
            ctx_size_in=ctypes.sizeof(arguments),
            ctx_in=ctypes.addressof(arguments),
        ),
    )


@pytest.fixture(scope="module")
def counting() -> Iterator[Counting]:
    with Counting.load(n_slots=1, n_cells=N_CELLS) as loaded:
        yield loaded


class Vcpu:
    """This thread as vCPU 0 of a VM; no kernel event of it is a vCPU's."""

    def __init__(self, counting: Counting) -> None:
        counting.give(0, threading.get_native_id())
        self._counting = counting

    def happens(self, event: str, **values: int) -> None:
        assert self._counting.hooks[event] == "raw"
        fd = self._counting._open_bpf().program_fd(f"probe_{event}")
        run(fd, event, **values)

    def counted(self) -> Traffic:
        (found,) = traffic(self._counting.read([0]), [[0]], exits_silent=False)
        return found

    def kvm_sends(self) -> None:
        """KVM repeats the send after the event."""
        self.happens("kvm_apic_ipi", icr_low=VECTOR, dest_id=TARGET)
        self.happens("kvm_apic_accept_irq", apicid=TARGET, dm=0, vec=VECTOR)


@pytest.fixture
def vcpu(counting: Counting) -> Iterator[Vcpu]:
    yield Vcpu(counting)
    counting.take(threading.get_native_id())


@pytest.mark.parametrize(("cause", "path"), [(0, "avic-invalid-type"), (2, "avic-invalid-target")])
def test_watch_tells_avics_causes_apart(vcpu: Vcpu, cause: int, path: str) -> None:
    vcpu.happens("kvm_avic_incomplete_ipi", icrl=VECTOR, id=cause, index=TARGET)
    vcpu.kvm_sends()
    vcpu.happens("kvm_entry")
    found = vcpu.counted()
    ((pair,), _) = found.pairs(0)
    assert (pair.target, pair.vector, pair.path, pair.ipis) == (TARGET, VECTOR, path, Count(1, 1))
    assert found.head("sends").total == 1


@pytest.mark.parametrize("woken", [(), (TARGET,), (1, 2, 3)])
def test_watch_counts_the_targets_that_kvm_wakes(vcpu: Vcpu, woken: tuple[int, ...]) -> None:
    """Older kernels report none of them: the target is then not known."""
    vcpu.happens("kvm_avic_incomplete_ipi", icrl=VECTOR, id=1, index=TARGET)
    for target in woken:
        vcpu.happens("kvm_apicv_accept_irq", apicid=target, dm=0, vec=VECTOR)
    vcpu.happens("kvm_entry")
    found = vcpu.counted()
    pairs, _ = found.pairs(0)
    assert {pair.target for pair in pairs} == set(woken or [None])
    assert {pair.path for pair in pairs} == {"avic-not-running"}
    n = len(pairs)
    assert [found.head(name, 0).total for name in ("fixed", "apicv")] == [n, n]
    assert [found.head(name, 1).total for name in ("fixed", "apicv")] == [0, 0]
    assert found.head("sends").total == 1
    vcpu.happens("kvm_apicv_accept_irq", apicid=TARGET, dm=0, vec=VECTOR)  # of something later
    assert vcpu.counted().ipis().total == n


def test_the_next_send_ends_one_whose_targets_were_not_reported(vcpu: Vcpu) -> None:
    for _ in range(2):
        vcpu.happens("kvm_avic_incomplete_ipi", icrl=VECTOR, id=1, index=TARGET)
    assert vcpu.counted().ipis().total == 1
    vcpu.happens("kvm_entry")
    assert vcpu.counted().ipis() == Count(1, 2)


@pytest.mark.parametrize("cause", [3, 4, 5, 1 << 20])
def test_watch_counts_no_ipi_for_a_cause_that_sends_none(vcpu: Vcpu, cause: int) -> None:
    vcpu.happens("kvm_avic_incomplete_ipi", icrl=VECTOR, id=cause, index=TARGET)
    assert vcpu.counted().head("sends").total == 1
    assert vcpu.counted().ipis().total == 0
    vcpu.kvm_sends()  # of another write: the event before it is not its cause
    ((pair,), _) = vcpu.counted().pairs(0)
    assert pair.path == "unknown"


def test_a_send_after_one_of_avic_is_not_avics(vcpu: Vcpu) -> None:
    vcpu.happens("kvm_avic_incomplete_ipi", icrl=VECTOR, id=0, index=TARGET)
    vcpu.kvm_sends()
    vcpu.kvm_sends()
    paths = {pair.path: pair.ipis.total for pair in vcpu.counted().pairs(0)[0]}
    assert paths == {"avic-invalid-type": 1, "unknown": 1}


def test_watch_counts_xen_hypercalls(vcpu: Vcpu) -> None:
    for _ in range(3):
        vcpu.happens("kvm_xen_hypercall", nr=32, a0=4)
    assert vcpu.counted().head("xen_hypercalls") == Count(3, 3)


@pytest.mark.parametrize(
    ("event", "values", "words"),
    [
        (Kind.KVM_AVIC_UNACCELERATED_ACCESS, {"offset": ICR, "ft": 1, "rw": 1}, (0, ICR, 3)),
        (Kind.KVM_AVIC_UNACCELERATED_ACCESS, {"offset": ICR, "ft": 0, "rw": 0}, (0, ICR, 0)),
        (Kind.KVM_AVIC_UNACCELERATED_ACCESS, {"offset": 0xB0, "ft": 1, "rw": 1}, None),
        (
            Kind.KVM_AVIC_INCOMPLETE_IPI,
            {"icrh": 1 << 24, "icrl": VECTOR, "id": 2, "index": 9},
            (1 << 56 | VECTOR, 2, 9),
        ),
        (Kind.KVM_XEN_HYPERCALL, {"nr": 32, "a0": 4}, (4, 32, 0)),
    ],
)
def test_run_records_what_happened(
    event: Kind, values: dict[str, int], words: tuple[int, int, int] | None
) -> None:
    name = event.name.lower()
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=[name]) as tracer:
        assert tracer.hooks == {name: "raw"}
        tracer.set_vcpu_threads([threading.get_native_id()])
        tracer.attach()
        run(tracer.program_fds[name], name, **values)
        tracer.detach()
        tracer.drain()
        events = tracer.take()
    found = [tuple(int(e[n]) for n in ("arg", "word", "detail")) for e in events]
    assert found == ([] if words is None else [words])
    assert np.all(events["kind"] == event)
