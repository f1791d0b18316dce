# SPDX-License-Identifier: Apache-2.0
"""The tracer on this kernel, watching this process's own threads in place of vCPUs."""

import ctypes
import functools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_state import open_descriptors
from workers import Witness, Worker, nap

from ipitrace.abi.events import HOST_EVENT
from ipitrace.base.errors import HostError
from ipitrace.correlate.switches import Switches, count_switches, of_others
from ipitrace.tracer import Tracer, attaching, bpf_links, kernel
from ipitrace.tracer.btf import Arg
from ipitrace.tracer.events import EVENT_BY_NAME, EVENTS
from ipitrace.tracer.program import KernelOffer
from ipitrace.words.events import NR_KINDS, Kind

pytestmark = pytest.mark.live("root", "bpf")

TRACEFS = Path(__file__).parents[1] / "data" / "tracefs"


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made = [Worker(), Worker(), Worker()]
    yield made
    for worker in made:
        worker.stop()


@pytest.fixture(scope="module")
def whole() -> Iterator[Tracer]:
    """A tracer of everything this kernel offers."""
    with Tracer.load(pid=os.getpid(), n_vcpus=2) as tracer:
        yield tracer


def test_every_event_is_loaded_or_left_out_for_a_reason(whole: Tracer) -> None:
    names = {event.name for event in EVENTS}
    assert whole.hooks.keys() | whole.left_out.keys() == names
    assert not whole.hooks.keys() & whole.left_out.keys()
    assert not [why for why in whole.left_out.values() if why.startswith("refused")]
    kprobes = Path("/sys/bus/event_source/devices/kprobe").exists()
    for event in EVENTS:
        if event.symbol and not kprobes:
            assert whole.left_out[event.name] == "the kernel was built without kprobes"
    assert whole.hooks["sched_switch"] == "raw"
    assert whole.hooks["reschedule_entry"] == "raw"
    assert whole.attached == ()


def test_everything_attaches(whole: Tracer) -> None:
    whole.attach()
    try:
        # A kernel may refuse a function only now; it always says why.
        assert {*whole.attached, *whole.left_out} >= set(whole.hooks)
        assert not {*whole.attached} & {*whole.left_out}
        assert {name for name, hook in whole.hooks.items() if hook in {"raw", "classic"}} <= {
            *whole.attached
        }
        assert whole.attach_s > 0
    finally:
        whole.detach()
    assert whole.attached == ()


def classic_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take this kernel's BTF away."""
    monkeypatch.setattr(
        kernel, "raw_offer", functools.partial(kernel.raw_offer, directory=tmp_path)
    )


@pytest.mark.parametrize("hook", ["raw", "classic"])
def test_registered_threads_count_and_others_do_not(
    hook: str, workers: list[Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if hook == "classic":
        classic_only(monkeypatch, tmp_path)
    stranger, idle, watched = workers
    with Tracer.load(pid=os.getpid(), n_vcpus=2, only=["sched_switch"]) as tracer:
        assert tracer.hooks == {"sched_switch": hook}
        tracer.set_vcpu_threads([idle.tid, watched.tid])
        witness = Witness(watched.tid)
        tracer.attach()
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        stranger.do(lambda: nap(50))
        assert not tracer.seen().any()
        watched.do(lambda: nap(50))
        stranger.do(lambda: nap(50))
        left = witness.left()
        after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tracer.detach()
        assert int(tracer.seen().sum()) in witness.can_be_seen()
        tracer.drain()
        events = tracer.take()
        seen = tracer.seen()
        assert tracer.losses().ring_overruns == {"sched_switch": 0}
    assert seen.shape == (NR_KINDS, 2)
    assert seen[Kind.SCHED_SWITCH, 0] == 0
    assert seen[Kind.SCHED_SWITCH, 1] == seen.sum() == len(events)
    assert events.dtype == HOST_EVENT
    assert (events["kind"] == Kind.SCHED_SWITCH).all()
    assert (events["vcpu"] == 1).all()
    assert (events["cpu"] < (os.cpu_count() or 1)).all()
    assert (np.diff(events["ts_ns"].astype("i8")) >= 0).all()
    assert before_ns <= events["ts_ns"][0] <= events["ts_ns"][-1] <= after_ns
    # It was asleep when we began, and is again: it left a CPU as often as it came to one.
    assert np.count_nonzero(events["detail"] == 0) == left >= 50
    came_unseen_at_first = int(events["detail"][0] == 0)
    assert count_switches(events) == Switches(
        len(events), 2 * left - len(events) - came_unseen_at_first
    )
    assert not (events["word"] == watched.tid).any()


def test_a_thread_that_is_not_set_does_not_count(workers: list[Worker]) -> None:
    with Tracer.load(pid=1, n_vcpus=1, only=["sched_switch", "ipi_send_cpu", "kvm_eoi"]) as tracer:
        tracer.attach()
        workers[0].do(lambda: nap(50))
        assert not tracer.seen().any()
        tracer.set_vcpu_threads([workers[0].tid])
        workers[0].do(lambda: nap(50))
        assert tracer.seen().any()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_ipi_that_wakes_a_thread_on_another_cpu(workers: list[Worker]) -> None:
    sender, sleeper, _ = workers
    here, there = sorted(os.sched_getaffinity(0))[:2]
    sender.do(lambda: os.sched_setaffinity(0, {here}))
    sleeper.do(lambda: os.sched_setaffinity(0, {there}))
    reading, writing = os.pipe()

    seen = threading.Event()
    give_up_s = time.monotonic() + 30

    def wake() -> None:
        # a CPU that is busy with something else is woken without an interrupt
        while not seen.is_set() and time.monotonic() < give_up_s:
            os.write(writing, b"x")
            time.sleep(0.0005)
        os.close(writing)

    def read_all() -> None:
        while os.read(reading, 1):
            pass

    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["ipi_send_cpu"]) as tracer:
        tracer.set_vcpu_threads([sender.tid])
        tracer.attach()
        reader = threading.Thread(target=sleeper.do, args=(read_all,))
        reader.start()
        waker = threading.Thread(target=sender.do, args=(wake,))
        waker.start()
        taken = []
        while waker.is_alive():
            tracer.drain()
            taken.append(tracer.take())
            if (taken[-1]["word"] == there).any():
                seen.set()
            time.sleep(0.001)
        waker.join()
        reader.join()
        tracer.detach()
        tracer.drain()
        events = np.concatenate([*taken, tracer.take()])
        assert len(events) == tracer.seen()[Kind.IPI_SEND_CPU, 0] > 0
    os.close(reading)
    assert (events["cpu"] == here).all()
    assert there in events["word"]


def test_a_new_set_of_threads_replaces_the_old(workers: list[Worker]) -> None:
    first, second, _ = workers
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([first.tid])
        tracer.set_vcpu_threads([second.tid])
        witness = Witness(second.tid)
        tracer.attach()
        first.do(lambda: nap(20))
        assert tracer.seen().sum() == 0
        second.do(lambda: nap(20))
        assert witness.left() >= 20
        assert int(tracer.seen().sum()) in witness.can_be_seen()
        with pytest.raises(ValueError, match="2 threads for 1 vCPUs"):
            tracer.set_vcpu_threads([first.tid, second.tid])


def test_what_overran_is_counted_exactly(workers: list[Worker]) -> None:
    worker = workers[0]
    with Tracer.load(pid=os.getpid(), n_vcpus=1, slots_per_ring=8, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([worker.tid])
        witness = Witness(worker.tid)
        tracer.attach()
        n_taken = 0
        for _ in range(3):
            worker.do(lambda: nap(30))
            tracer.drain()
            n_taken += len(tracer.take())
        tracer.detach()
        tracer.drain()
        n_taken += len(tracer.take())
        lost = tracer.losses().ring_overruns["sched_switch"]
        assert lost >= 3 * (30 - 8)
        assert n_taken + lost == tracer.seen().sum()
        assert n_taken + lost in witness.can_be_seen()


def test_what_is_kept_is_bounded_and_the_rest_counted(workers: list[Worker]) -> None:
    worker = workers[0]
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([worker.tid])
        tracer.keep_at_most(40)
        tracer.attach()
        for _ in range(5):
            worker.do(lambda: nap(20))
            tracer.drain()
        assert len(tracer.take()) == 40
        worker.do(lambda: nap(10))
        tracer.detach()
        tracer.drain()
        after = len(tracer.take())
        assert 10 <= after <= 40
        lost = tracer.losses().ring_overruns["sched_switch"]
        assert lost > 0
        assert 40 + after + lost == tracer.seen().sum()


def test_nothing_is_seen_after_detach_and_attaching_again_goes_on(workers: list[Worker]) -> None:
    worker = workers[0]
    before = open_descriptors()
    with Tracer.load(
        pid=os.getpid(), n_vcpus=1, only=["sched_switch", "kvm_exit", "kvm_eoi"]
    ) as tracer:
        loaded = open_descriptors()
        tracer.set_vcpu_threads([worker.tid])
        last = 0
        for _ in range(20):
            witness = Witness(worker.tid)
            tracer.attach()
            worker.do(lambda: nap(3))
            assert witness.left() >= 3
            tracer.detach()
            assert open_descriptors() == loaded
            seen = int(tracer.seen().sum())
            assert seen - last in witness.can_be_seen()
            worker.do(lambda: nap(3))
            assert int(tracer.seen().sum()) == seen
            last = seen
        tracer.drain()
        at_the_end = tracer.seen()
    assert open_descriptors() == before
    assert (tracer.seen() == at_the_end).all()
    assert len(tracer.take()) == at_the_end.sum()
    assert tracer.losses().ring_overruns["sched_switch"] == 0
    tracer.close()
    with pytest.raises(ValueError, match="closed"):
        tracer.attach()


def test_closing_while_attached_leaves_nothing(workers: list[Worker]) -> None:
    before = open_descriptors()
    tracer = Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"])
    tracer.set_vcpu_threads([workers[0].tid])
    tracer.attach()
    tracer.close()
    assert open_descriptors() == before


def test_counting_only_and_back_again(workers: list[Worker]) -> None:
    worker = workers[0]
    with Tracer.load(
        pid=os.getpid(), n_vcpus=1, slots_per_ring=64, only=["sched_switch"]
    ) as tracer:
        tracer.set_vcpu_threads([worker.tid])
        recorded = 0
        for counting_only in (True, False, True, False, False, True, True):
            before = int(tracer.seen().sum())
            tracer.attach(counting_only=counting_only)
            worker.do(lambda: nap(20))
            time.sleep(0.001)  # the worker goes back to sleep
            tracer.detach()
            happened = int(tracer.seen().sum()) - before
            assert happened > 20
            tracer.drain()
            taken = len(tracer.take())
            assert taken == (0 if counting_only else happened)
            recorded += taken
        assert recorded > 3 * 20
        assert tracer.losses().ring_overruns == {"sched_switch": 0}
        # What overran while recording stays known when only counting goes on.
        tracer.attach()
        worker.do(lambda: nap(100))
        tracer.detach()
        tracer.attach(counting_only=True)
        worker.do(lambda: nap(100))
        tracer.detach()
        tracer.drain()
        kept = len(tracer.take())
        assert kept == 63
        lost = tracer.losses().ring_overruns["sched_switch"]
        heads = tracer._open_maps().heads
        assert heads is not None
        assert lost > 0
        assert recorded + kept + lost == heads["written"].sum()


def test_the_mode_changes_while_events_go_on(workers: list[Worker]) -> None:
    worker = workers[0]
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([worker.tid])
        witness = Witness(worker.tid)
        tracer.attach()
        running = threading.Thread(target=worker.do, args=(lambda: nap(1500),))
        running.start()
        recorded = modes = 0
        while running.is_alive():
            tracer.attach(counting_only=modes % 2 == 0)
            time.sleep(0.002)
            modes += 1
            tracer.drain()
            recorded += len(tracer.take())
        running.join()
        assert witness.left() >= 1500
        tracer.detach()
        tracer.drain()
        recorded += len(tracer.take())
        heads = tracer._open_maps().heads
        assert heads is not None
        counted = int(heads["counted"].sum())
        assert modes > 20
        assert recorded > 100
        assert counted > 100
        assert recorded + counted == tracer.seen().sum()
        assert recorded + counted in witness.can_be_seen()
        assert tracer.losses().ring_overruns == {"sched_switch": 0}


def probes_on_libc(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, tuple[str, tuple[Arg, ...]]]
) -> None:
    """Put function probes on functions of our own C library: the same programs, run as uprobes.

    `places`: event name to the C library's function and what BTF would say its arguments are.
    """
    symbols = {
        EVENT_BY_NAME[name].symbol: getattr(ctypes.CDLL(None), place[0])
        for name, place in places.items()
    }
    args = {name: args for name, (_, args) in places.items() if args}

    def on_libc(symbol: str, hook: str) -> int:
        return open_uprobe(symbols[symbol], returns=hook == "kretprobe")

    monkeypatch.setattr(kernel, "function_offer", lambda symbols: (frozenset(symbols), {}))
    monkeypatch.setattr(kernel, "raw_offer", lambda _: KernelOffer(args=args))
    monkeypatch.setattr(bpf_links, "_function", on_libc)


def open_uprobe(function: Any, *, returns: bool) -> int:
    """A perf event for each call of a function by this process, or for each return from it."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in span.split("-"))
        if start <= address < end:
            break
    devices = Path("/sys/bus/event_source/devices/uprobe")
    bit = int((devices / "format/retprobe").read_text().partition(":")[2])
    name = ctypes.create_string_buffer(path[0].encode())
    attr = bpf_links._PerfEventAttr(
        type=int((devices / "type").read_text()),
        size=ctypes.sizeof(bpf_links._PerfEventAttr),
        config=1 << bit if returns else 0,
        sample_period=1,
        wakeup_events=1,
        config1=ctypes.addressof(name),
        config2=address - start + int(offset, 16),
    )
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    fd: int = syscall(298, ctypes.byref(attr), os.getpid(), -1, -1, ctypes.c_ulong(8))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_the_programs_of_functions(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = tuple(Arg(name, "s32") for name in ("apic", "mode", "trig", "vector"))
    probes_on_libc(
        monkeypatch,
        {
            "pi_wakeup_handler": ("getppid", ()),
            "vmx_deliver_interrupt": ("getpgrp", deliver),
            "handle_fastpath_wrmsr": ("getppid", ()),
            "handle_fastpath_set_msr_irqoff": ("geteuid", ()),
        },
    )
    libc = ctypes.CDLL(None)

    def call() -> None:
        for _ in range(5):
            libc.getppid()
            libc.getpgrp(1, 2, 3, 0xEC)
            libc.geteuid()  # 0, like EXIT_FASTPATH_NONE

    names = [
        "pi_wakeup_handler",
        "vmx_deliver_interrupt",
        "handle_fastpath_wrmsr",
        "handle_fastpath_set_msr_irqoff",
    ]
    vcpu, other, _ = workers
    before = open_descriptors()
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=names) as tracer:
        assert tracer.left_out == {}
        assert tracer.unattributed() == {"pi_wakeup_handler": 0}
        tracer.set_vcpu_threads([vcpu.tid])
        tracer.attach()
        assert set(tracer.attached) == set(names)
        vcpu.do(call)
        assert tracer.unattributed() == {"pi_wakeup_handler": 0}
        other.do(call)
        other.do(call)
        tracer.detach()
        assert tracer.attached == ()
        vcpu.do(call)
        tracer.drain()
        events, seen = tracer.take(), tracer.seen()
    assert open_descriptors() == before
    assert tracer.unattributed() == {"pi_wakeup_handler": 10}
    by_kind = {kind: events[events["kind"] == kind] for kind in Kind}
    assert len(by_kind[Kind.PI_WAKEUP_HANDLER]) == seen[Kind.PI_WAKEUP_HANDLER, 0] == 5
    assert (by_kind[Kind.VMX_DELIVER_INTERRUPT]["detail"] == [0xEC] * 5).all()
    assert seen[Kind.VMX_DELIVER_INTERRUPT, 0] == 5 + 10, "other threads are counted"
    assert (by_kind[Kind.HANDLE_FASTPATH_WRMSR]["word"] == [os.getppid()] * 5).all()
    assert seen[Kind.HANDLE_FASTPATH_SET_MSR_IRQOFF, 0] == 0, "not taken"


def test_without_tracefs_no_function_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "function_offer", lambda symbols: (frozenset(symbols), {}))
    monkeypatch.setattr(attaching, "ensure_tracefs", lambda: (None, "tracefs is not mounted"))
    with Tracer.load(pid=1, n_vcpus=1, only=["sched_switch", "pi_wakeup_handler"]) as tracer:
        assert tracer.left_out == {"pi_wakeup_handler": "tracefs is not mounted"}


def test_a_function_that_cannot_be_probed_is_left_out(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is patched but what we believe: the kernel itself refuses."""
    monkeypatch.setattr(kernel, "function_offer", lambda symbols: (frozenset(symbols), {}))
    names = ["sched_switch", "smp_kvm_posted_intr_ipi"]
    if Path("/sys/bus/event_source/devices/kprobe").exists() and (
        " smp_kvm_posted_intr_ipi\n" in Path("/proc/kallsyms").read_text()
    ):
        pytest.skip("this kernel has the function")
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=names) as tracer:
        assert set(tracer.hooks) == set(names)
        tracer.set_vcpu_threads([workers[0].tid])
        tracer.attach()
        assert tracer.attached == ("sched_switch",)
        assert tracer.left_out["smp_kvm_posted_intr_ipi"].startswith("not attached: ")
        workers[0].do(lambda: nap(3))
        assert tracer.seen().sum() >= 6
    with (
        Tracer.load(pid=os.getpid(), n_vcpus=1, only=names[1:]) as tracer,
        pytest.raises(HostError, match="No event could be attached"),
    ):
        tracer.attach()


def test_switches_between_others_are_recorded_where_asked(workers: list[Worker]) -> None:
    cpu = min(os.sched_getaffinity(0))
    first, second, asleep = workers
    for worker in workers:
        os.sched_setaffinity(worker.tid, {cpu})
    with Tracer.load(pid=os.getpid(), n_vcpus=2, only=["sched_switch"]) as tracer:
        tracer.attach()
        for asked in ((), (cpu, cpu)):
            tracer.set_vcpu_threads([asleep.tid, second.tid], asked)
            first.do(lambda: nap(50))
            tracer.drain()
            events = tracer.take()
            others = events[of_others(events)]
            if not asked:
                assert not len(others)
                continue
            # The thread came and left fifty times, and is no vCPU's: it is in the ring of the
            # first vCPU of its CPU, and in no count.
            assert np.count_nonzero(others["word"] == first.tid) >= 40
            assert np.count_nonzero(others["arg"] == first.tid) >= 40
            assert set(others["vcpu"]) == {0}
            assert set(others["cpu"]) == {cpu}
            assert not np.isin(others["word"], [asleep.tid, second.tid]).any()
            tracer.detach()
            tracer.drain()
            events = np.concatenate([events, tracer.take()])
            assert int(tracer.seen().sum()) == np.count_nonzero(~of_others(events))
            tracer.attach()
            assert tracer.losses().ring_overruns == {"sched_switch": 0}
        tracer.set_vcpu_threads([asleep.tid, second.tid])
        tracer.drain()
        tracer.take()  # of the time before
        first.do(lambda: nap(50))
        tracer.drain()
        assert not of_others(tracer.take()).any()
