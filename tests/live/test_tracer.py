# SPDX-License-Identifier: Apache-2.0
"""The tracer on this kernel, watching this process's own threads in place of vCPUs."""

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ipitrace import resources
from ipitrace.errors import HostError, UsageError
from ipitrace.layout import HOST_EVENT, NR_KINDS, Kind
from ipitrace.tracer import Tracer, kernel
from ipitrace.tracer.btf import Arg
from ipitrace.tracer.compiler import compile_programs, load_programs
from ipitrace.tracer.events import EVENT_BY_TRACEPOINT, EVENTS
from ipitrace.tracer.program import Offer, plan
from ipitrace.tracer.tracefs import MOUNT_POINTS, find_tracefs

pytestmark = pytest.mark.live("root", "bpf")


class Worker:
    """A thread that does what it is told, and otherwise sleeps."""

    def __init__(self) -> None:
        self._wake, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._job: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        self._done.acquire()
        self.tid = self._thread.native_id or 0

    def _loop(self) -> None:
        self._done.release()
        while True:
            self._wake.acquire()
            if self._job is None:
                return
            self._job()
            self._done.release()

    def do(self, job: Callable[[], None]) -> None:
        self._job = job
        self._wake.release()
        self._done.acquire()

    def stop(self) -> None:
        self._job = None
        self._wake.release()
        self._thread.join()


def nap(times: int) -> None:
    """Leave the CPU and get one again, so many times."""
    for _ in range(times):
        time.sleep(0.0002)


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


def open_descriptors() -> dict[str, str]:
    """What is open; the descriptor of the listing itself is gone by the time it is read."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def test_every_event_is_loaded_or_left_out_for_a_reason(whole: Tracer) -> None:
    names = {event.tracepoint for event in EVENTS}
    assert whole.hooks.keys() | whole.left_out.keys() == names
    assert not whole.hooks.keys() & whole.left_out.keys()
    assert not [why for why in whole.left_out.values() if why.startswith("refused")]
    assert whole.hooks["sched_switch"] == "raw"
    assert whole.hooks["reschedule_entry"] == "raw"
    assert whole.attached == ()


def test_everything_attaches(whole: Tracer) -> None:
    whole.attach()
    try:
        assert set(whole.attached) == set(whole.hooks)
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
        tracer.attach()
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        stranger.do(lambda: nap(50))
        assert not tracer.seen().any()
        watched.do(lambda: nap(50))
        stranger.do(lambda: nap(50))
        after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tracer.detach()
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
    # It was asleep when we began, and is again: in and out take turns, in first.
    assert (events["detail"] == np.arange(len(events)) % 2 ^ 1).all()
    assert len(events) >= 2 * 50
    assert not (events["word"] == watched.tid).any()


def test_another_process_does_not_count(workers: list[Worker]) -> None:
    with Tracer.load(pid=1, n_vcpus=1, only=["ipi_send_cpu", "kvm_eoi"]) as tracer:
        tracer.set_vcpu_threads([workers[0].tid])
        tracer.attach()
        workers[0].do(lambda: nap(50))
        assert not tracer.seen().any()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_ipi_that_wakes_a_thread_on_another_cpu(workers: list[Worker]) -> None:
    sender, sleeper, _ = workers
    here, there = sorted(os.sched_getaffinity(0))[:2]
    sender.do(lambda: os.sched_setaffinity(0, {here}))
    sleeper.do(lambda: os.sched_setaffinity(0, {there}))
    reading, writing = os.pipe()

    def wake() -> None:
        for _ in range(200):
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
        sender.do(wake)
        reader.join()
        tracer.detach()
        tracer.drain()
        events = tracer.take()
        assert len(events) == tracer.seen()[Kind.IPI_SEND_CPU, 0] > 0
    os.close(reading)
    assert (events["cpu"] == here).all()
    assert there in events["word"]


def test_a_new_set_of_threads_replaces_the_old(workers: list[Worker]) -> None:
    first, second, _ = workers
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([first.tid])
        tracer.set_vcpu_threads([second.tid])
        tracer.attach()
        first.do(lambda: nap(20))
        assert tracer.seen().sum() == 0
        second.do(lambda: nap(20))
        assert tracer.seen().sum() >= 40
        with pytest.raises(ValueError, match="2 threads for 1 vCPUs"):
            tracer.set_vcpu_threads([first.tid, second.tid])


def test_what_overran_is_counted_exactly(workers: list[Worker]) -> None:
    worker = workers[0]
    with Tracer.load(pid=os.getpid(), n_vcpus=1, slots_per_ring=8, only=["sched_switch"]) as tracer:
        tracer.set_vcpu_threads([worker.tid])
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
        assert lost >= 3 * (60 - 8)
        assert n_taken + lost == tracer.seen().sum()


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
            tracer.attach()
            worker.do(lambda: nap(3))
            time.sleep(0.001)  # the worker goes back to sleep
            tracer.detach()
            assert open_descriptors() == loaded
            seen = int(tracer.seen().sum())
            assert seen >= last + 6
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


def test_an_event_that_is_only_counted_can_be_watched_alone() -> None:
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["kvm_emulate_insn"]) as tracer:
        tracer.attach()
        tracer.drain()
        assert len(tracer.take()) == 0
        assert tracer.losses().ring_overruns == {}


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="kvm_ext") as raised:
        Tracer.load(pid=1, n_vcpus=1, only=["kvm_ext"])
    assert "kvm_exit" in raised.value.hint
    with pytest.raises(ValueError, match="power of two"):
        Tracer.load(pid=1, n_vcpus=1, slots_per_ring=1000)


def test_a_program_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/usr/src/mine")
    before = open_descriptors()
    with pytest.raises(HostError, match="do not compile") as raised:
        compile_programs("int broken(void) { return absent; }\n", [], resources.bpf_dir())
    assert "undeclared identifier 'absent'" in raised.value.hint
    assert os.environ["BCC_KERNEL_SOURCE"] == "/usr/src/mine"
    assert open_descriptors() == before


def test_a_program_the_verifier_refuses() -> None:
    text = "int probe_kvm_eoi(struct bpf_raw_tracepoint_args *ctx) { return ctx->args[99]; }\n"
    offer = Offer(args={"kvm_eoi": (Arg("vector", "s32"),)})
    bpf = compile_programs(text, [], resources.bpf_dir())
    try:
        with pytest.raises(HostError, match="refused every BPF program") as raised:
            load_programs(bpf, plan([EVENT_BY_TRACEPOINT["kvm_eoi"]], offer))
        assert "invalid" in raised.value.hint
    finally:
        bpf.cleanup()


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(HostError, match="refused the maps"):
        Tracer.load(pid=1, n_vcpus=1000, slots_per_ring=1 << 24, only=["kvm_eoi"])


def test_this_kernels_btf() -> None:
    offer = kernel.raw_offer(EVENTS)
    assert offer.no_args is None
    assert "*task_struct" in [arg.shape for arg in offer.args["sched_switch"]]
    assert offer.task_pid_offset is not None
    assert offer.task_pid_offset % 4 == 0


PRIVATE_MOUNT = """
import json, os
from pathlib import Path
from ipitrace.tracer.tracefs import ensure_tracefs
def has_tracefs(pid):
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return "tracefs" in [line.split(" - ")[1].split()[0] for line in lines]
path, why = ensure_tracefs()
events = (Path(path) / "events/sched").is_dir()
print(json.dumps([str(path), why, events, has_tracefs("self"), has_tracefs(os.getppid())]))
"""


def test_tracefs_is_mounted_for_the_process_alone() -> None:
    # A stand-in for a host: a namespace without tracefs whose mounts would spread.
    host = (
        "umount -l /sys/kernel/tracing 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null;"
        ' mount --make-rshared / && "$0" -c "$1"; exit $?'
    )
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-c", host, sys.executable, PRIVATE_MOUNT],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(answer) == [str(MOUNT_POINTS[0]), None, True, True, False]


def test_without_tracefs_raw_tracepoints_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "ipitrace.tracer.session.ensure_tracefs", lambda: (None, "tracefs is not mounted")
    )
    with Tracer.load(pid=1, n_vcpus=1, only=["sched_switch", "kvm_exit"]) as tracer:
        assert "sched_switch" in tracer.hooks
        if "kvm_exit" not in tracer.hooks:
            assert "tracefs is not mounted" in tracer.left_out["kvm_exit"]
    assert find_tracefs((tmp_path,)) is None
