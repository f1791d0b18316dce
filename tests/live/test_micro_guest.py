# SPDX-License-Identifier: Apache-2.0
"""The micro-guest on this machine's KVM."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ipitrace.abi.storm import ALL, ALL_BUT_SELF, TARGET_MASK, StormSendMethod
from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.clock import Clock
from ipitrace.host.kvm_extensions import HYPERV_IPIS, offers
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro import hypercall
from ipitrace.storm.micro.driver import MicroGuest, unsupported
from ipitrace.storm.micro.image import LogSizes, Payload, load_payload
from ipitrace.storm.micro.machine import Machine
from ipitrace.storm.plausible import run_plausible
from ipitrace.words.scenarios import HV_METHODS, SCENARIOS, Pattern, TargetState, routes_of

pytestmark = pytest.mark.live("kvm")

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
RUNNABLE = [scenario.name for scenario in SCENARIOS if unsupported(scenario) is None]
UNPINNED = [name for name in RUNNABLE if BY_NAME[name].target_state != TargetState.PREEMPTED]
OF_TWO = [name for name in UNPINNED if BY_NAME[name].pattern != Pattern.MULTICAST]
OF_FOUR = ["broadcast", "broadcast-halted", "broadcast-xapic", "broadcast-self"]
OF_FOUR += ["broadcast-self-xapic", "multicast-running", "multicast-xapic", "ring", "ring-xapic"]
AIMS = {
    Pattern.BROADCAST: ALL_BUT_SELF,
    Pattern.BROADCAST_SELF: ALL,
    Pattern.MULTICAST: TARGET_MASK,
}
COUNT, WARMUP = 60, 10
PATIENCE_S = 20.0  # this machine may be doing other things


def request(name: str, n_vcpus: int = 2, **changes: object) -> StormRequest:
    blocked = BY_NAME[name].target_state == TargetState.BLOCKED
    usual = StormRequest(
        BY_NAME[name], n_vcpus, COUNT, WARMUP, 3_000_000 if blocked else 60_000, PATIENCE_S
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def storm_of(name: str, n_vcpus: int = 2, hooks: Hooks | None = None, **changes: object) -> Storm:
    guest = MicroGuest.prepare(n_vcpus, None)
    return run_plausible(guest, request(name, n_vcpus, **changes), hooks or Hooks())


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:  # the listing's own
            continue
    return found


def kernel_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))  # noqa: PTH208


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Whatever a storm comes to, no thread, descriptor or handler of its is left."""
    before = (descriptors(), set(threading.enumerate()), signal.getsignal(signal.SIGUSR1))
    tasks = kernel_threads()
    yield
    after = (descriptors(), set(threading.enumerate()), signal.getsignal(signal.SIGUSR1))
    assert after == before
    # Python joins a thread a moment before the kernel has done with it.
    deadline_s = time.monotonic() + 10
    while not kernel_threads() <= tasks:
        assert time.monotonic() < deadline_s, kernel_threads() - tasks
        time.sleep(0.001)


def assert_honest(storm: Storm, name: str, n_vcpus: int, count: int = COUNT) -> None:
    """Nothing lost, and every stamp in the order in which things happen."""
    guest = MicroGuest.prepare(n_vcpus, None)
    targets = guest.targets(BY_NAME[name])
    pattern = BY_NAME[name].pattern
    routes = routes_of(pattern, targets)
    assert len(storm.sends) == count * len(routes)
    assert (storm.incomplete, storm.spurious) == (0, 0)
    for route in routes:
        sends = storm.sends_of(route.sender)
        assert sends["seq"].tolist() == list(range(WARMUP, WARMUP + count))
        send, sent, ack = (
            sends[field].astype(np.int64) for field in ("send_tsc", "sent_tsc", "ack_tsc")
        )
        assert (np.diff(send) > 0).all()
        assert (sent > send).all(), "S"
        assert (ack >= sent).all(), "S <= R"
        assert (send[1:] > ack[:-1]).all(), "a send before the acknowledgement of the one before"
        assert set(sends["target"].tolist()) == {AIMS.get(pattern, route.targets[0])}
        for vcpu in route.targets:
            receipts = storm.receipts[vcpu]
            assert storm.handled[vcpu] == len(receipts) == count
            assert receipts["seq"].tolist() == list(range(WARMUP, WARMUP + count))
            handler = receipts["handler_tsc"].astype(np.int64)
            assert (handler > send).all(), "D"
            assert (handler < ack).all(), "acknowledged before it was handled"
            assert (receipts["eoi_tsc"] > receipts["handler_tsc"]).all()
    for vcpu in set(range(n_vcpus)) - set(targets):
        assert (storm.handled[vcpu], len(storm.receipts[vcpu])) == (0, 0)
    assert storm.start.ts_ns < storm.end.ts_ns


@pytest.mark.parametrize("name", OF_TWO)
def test_every_scenario(name: str) -> None:
    assert_honest(storm_of(name), name, 2)


def test_both_ways_to_send_are_in_the_table() -> None:
    methods = {BY_NAME[name].send_method for name in RUNNABLE}
    assert methods - {"pv-hypercall", "passthrough", *HV_METHODS} == {"x2apic", "xapic"}
    hypercalls = 0 if hypercall.why_unsupported() else 2
    hypercalls += 5 if offers(*HYPERV_IPIS) else 0
    assert len(RUNNABLE) == 24 + hypercalls


def out_of_cpu(tid: int) -> int:
    """Nanoseconds that a thread has waited for a CPU, runnable: /proc/TID/schedstat."""
    return int(Path(f"/proc/self/task/{tid}/schedstat").read_text().split()[1])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_preempted_target_has_no_cpu_when_the_ipi_is_sent() -> None:
    name = "unicast-preempted"
    cpus = tuple(sorted(os.sched_getaffinity(0))[:2])
    tids: list[int] = []
    waits: dict[int, int] = {}
    waited: list[tuple[int, int]] = []

    def mark() -> None:
        for tid in tids:
            before, waits[tid] = waits.get(tid), out_of_cpu(tid)
            if before is not None:
                waited.append((tid, waits[tid] - before))

    guest = MicroGuest.prepare(2, (cpus[0], cpus[1]))
    hooks = Hooks(threads_known=tids.extend, mark=mark)
    storm = run_plausible(guest, request(name), hooks)
    assert_honest(storm, name, 2)
    assert storm.as_asked == 1
    # Between each two sends the preempting process had the CPU for a pace at least.
    pace_ns = request(name).pace_cycles * 1_000_000 // (storm.tsc_khz or 1)
    assert sum(ns for tid, ns in waited if tid == tids[1]) > COUNT * pace_ns
    d = storm.receipts[1]["handler_tsc"].astype(np.int64) - storm.sends["send_tsc"]
    s = storm.sends["sent_tsc"] - storm.sends["send_tsc"]
    assert (d > s).mean() > 0.9, "the handler cannot run before the send is over and seen"


def test_only_a_pinned_target_can_be_preempted() -> None:
    scenario = BY_NAME["unicast-preempted"]
    assert "pinned" in (MicroGuest.prepare(2, None).unsupported(scenario) or "")
    assert MicroGuest.prepare(2, (0, 1)).unsupported(scenario) is None


def test_a_preemptor_that_is_refused_is_told() -> None:
    guest = MicroGuest.prepare(2, (0, 8191))
    with pytest.raises(HostError, match=r"on CPU 8191: .*Invalid argument"):
        guest.run(request("unicast-preempted"), Hooks())


def test_a_guest_that_dies_while_its_target_is_preempted_is_told() -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    guest = MicroGuest.prepare(2, (cpus[0], cpus[-1]))
    with pytest.raises(MeasurementError, match="guest hung"):
        guest.run(request("unicast-preempted", inject="hang", timeout_s=0.05), Hooks())


@pytest.mark.parametrize("name", OF_FOUR)
def test_a_send_reaches_all_of_its_targets(name: str) -> None:
    """Four vCPUs may share fewer CPUs: few sends, much patience."""
    storm = storm_of(name, 4, count=8)
    assert_honest(storm, name, 4, 8)


@pytest.mark.parametrize("name", ["unicast-logical", "unicast-logical-xapic"])
def test_a_logical_id_is_that_of_one_vcpu(name: str) -> None:
    storm = storm_of(name, 4, count=8)
    assert storm.handled == (0, 8, 0, 0)


def test_the_vcpus_of_a_ring_send_at_once() -> None:
    storm = storm_of("ring")
    first, second = (storm.sends_of(vcpu) for vcpu in (0, 1))
    assert first["send_tsc"][0] < second["ack_tsc"][-1]
    assert second["send_tsc"][0] < first["ack_tsc"][-1]


def test_a_ring_that_loses_an_ipi_goes_on() -> None:
    storm = storm_of("ring", inject="lost-ipi", timeout_s=0.3)
    assert storm.incomplete == 2  # each sender's
    assert storm.handled == (COUNT - 1, COUNT - 1)


def test_a_unicast_leaves_the_bystanders_alone() -> None:
    storm = storm_of("unicast-halted", 3, count=20)
    assert storm.handled == (0, 20, 0)


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("count", [1, 2])
def test_the_smallest_storms(warmup: int, count: int) -> None:
    storm = storm_of("unicast-running", count=count, warmup=warmup)
    assert storm.sends["seq"].tolist() == list(range(warmup, warmup + count))
    assert storm.handled == (0, count)


def test_kvms_own_counters_saw_what_must_have_happened() -> None:
    """A halted target exits by HLT for each IPI, and a sender that spins never does."""
    storm = storm_of("unicast-halted", pace_cycles=1_000_000)
    if storm.start.stats is None or storm.end.stats is None:
        pytest.skip("no KVM_GET_STATS_FD")
    moved = [
        {name: after[name] - before[name] for name in after}
        for before, after in zip(storm.start.stats, storm.end.stats, strict=True)
    ]
    assert COUNT * 0.9 <= moved[1]["halt_exits"] <= COUNT + 2
    assert moved[0]["halt_exits"] == 0
    assert moved[1]["exits"] >= moved[1]["halt_exits"]


def test_guest_stamps_lie_between_the_hosts() -> None:
    clock = Clock()
    before = clock.sandwich()
    storm = storm_of("unicast-running")
    after = clock.sandwich()
    if storm.tsc_offset is not None:
        assert storm.tsc_offset == 0
    stamps = [storm.sends[field] for field in ("send_tsc", "sent_tsc", "ack_tsc")]
    stamps += [storm.receipts[1][field] for field in ("handler_tsc", "eoi_tsc")]
    assert before.tsc < min(int(s.min()) for s in stamps)
    assert max(int(s.max()) for s in stamps) < after.tsc
    assert before.ts_ns < storm.start.ts_ns < storm.end.ts_ns < after.ts_ns


def test_the_marks_enclose_the_measured_window() -> None:
    """A host sandwich taken at each mark lies on its side of every measured stamp."""
    clock = Clock()
    taken: list[int] = []

    def mark() -> None:
        taken.append(clock.sandwich().tsc)

    storm = storm_of("unicast-halted", hooks=Hooks(mark=mark))
    warming_up, measuring, done = taken
    first, last = int(storm.sends["send_tsc"][0]), int(storm.sends["ack_tsc"][-1])
    assert warming_up < measuring < first < last < done


def test_the_hooks_are_called() -> None:
    tids: list[int] = []
    ticks: list[int] = []
    threads: list[set[str]] = []

    def known(them: Sequence[int]) -> None:
        tids.extend(them)
        threads.append(kernel_threads())

    main = threading.get_ident()
    callers: set[int] = set()

    def tick(sent: int) -> None:
        callers.add(threading.get_ident())
        ticks.append(sent)

    storm_of("unicast-blocked", 3, Hooks(threads_known=known, tick=tick), count=100)
    assert len(set(tids)) == 3
    assert {str(tid) for tid in tids} <= threads[0]
    assert callers == {main}
    assert ticks == sorted(ticks)
    assert 0 <= ticks[-1] <= WARMUP + 100


def test_a_tick_chooses_the_time_of_the_next() -> None:
    def ticks(pause_s: float | None) -> int:
        called: list[int] = []

        def tick(sent: int) -> float | None:
            called.append(sent)
            return pause_s

        storm_of("unicast-blocked", hooks=Hooks(tick=tick), count=300)
        assert called[0] == 0, "before the vCPUs run"
        return len(called)

    assert ticks(60.0) == 1
    usual = ticks(None)
    assert 1 < usual < ticks(0.001)


def processor_of(tid: int) -> int:
    """Field 39 of /proc/PID/stat: the CPU it ran on last."""
    return int(Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()[36])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize("swapped", [False, True])
def test_pinned_vcpus_run_where_they_are_pinned(swapped: bool) -> None:  # noqa: FBT001
    first, second = sorted(os.sched_getaffinity(0))[:2]
    cpus = (second, first) if swapped else (first, second)
    allowed = os.sched_getaffinity(0)
    tids: list[int] = []
    seen: set[tuple[int, ...]] = set()

    def tick(sent: int) -> None:
        if sent > 0:
            assert [os.sched_getaffinity(tid) for tid in tids] == [{cpu} for cpu in cpus]
            seen.add(tuple(processor_of(tid) for tid in tids))

    guest = MicroGuest.prepare(2, cpus)
    storm = guest.run(
        request("unicast-running", count=1500), Hooks(threads_known=tids.extend, tick=tick)
    )
    assert_honest(storm, "unicast-running", 2, 1500)
    assert seen == {cpus}
    assert os.sched_getaffinity(0) == allowed
    assert guest.describe().pinned_cpus == cpus


def test_a_cpu_that_does_not_exist() -> None:
    guest = MicroGuest.prepare(2, (0, 8191))
    with pytest.raises(HostError, match=r"vCPU 1 cannot be pinned"):
        guest.run(request("self"), Hooks())


def test_a_lost_ipi_is_told_and_the_storm_goes_on() -> None:
    storm = storm_of("unicast-running", inject="lost-ipi", timeout_s=0.3)
    lost = COUNT // 2
    assert storm.incomplete == 1
    assert storm.handled[1] == len(storm.receipts[1]) == COUNT - 1
    assert np.flatnonzero(storm.sends["ack_tsc"] == 0).tolist() == [lost]
    handled = storm.receipts[1]["handler_tsc"]
    at, after = storm.sends["send_tsc"][lost], storm.sends["send_tsc"][lost + 1]
    assert not ((handled > at) & (handled < after)).any()


def test_a_hang_is_stopped() -> None:
    made = WARMUP + COUNT // 2
    with pytest.raises(MeasurementError, match=rf"guest hung: .* after {made} sends") as raised:
        storm_of("unicast-running", inject="hang", timeout_s=0.05)
    assert "stopped" in raised.value.message


def test_a_triple_fault_is_told() -> None:
    made = WARMUP + COUNT // 2
    pattern = rf"guest died: vCPU 0 triple-faulted at rip 0x[0-9a-f]+, after {made} sends"
    with pytest.raises(MeasurementError, match=pattern):
        storm_of("unicast-running", inject="triple-fault")


def test_a_guest_that_loses_more_than_it_may_gives_up() -> None:
    burnt = 500_000_000  # longer than the sender waits, however the two share the CPUs
    with pytest.raises(MeasurementError, match="gave up: 4 IPIs"):
        storm_of("unicast-running", timeout_s=0.001, handler_burn_cycles=burnt)


def run_payload(payload: Payload) -> Storm:
    with Machine(payload, 2, LogSizes(1, 1), StormSendMethod.X2APIC) as machine:
        fields = dict.fromkeys(
            ("pattern", "target_state", "inject", "warmup", "pace_cycles", "send_method"), 0
        )
        machine.memory.write_params(
            **fields, target=1, count=1, max_incomplete=0, timeout_cycles=1 << 40
        )
        return machine.run(None, Hooks(), warmup=0, silence_s=0.5)


def test_an_exception_in_the_guest_is_told_with_its_place() -> None:
    payload = load_payload()
    broken = bytearray(payload.image)
    broken[payload.service_entry : payload.service_entry + 2] = b"\x0f\x0b"  # ud2
    at = f"{0x10000 + payload.service_entry:#x}"
    with pytest.raises(MeasurementError, match=rf"exception 6 .* at {at} on vCPU 0"):
        run_payload(replace(payload, image=bytes(broken)))


def test_a_payload_that_speaks_to_another_port() -> None:
    out_0x80 = bytes.fromhex("ba80000000 31c0 ee ebfe")
    with pytest.raises(MeasurementError, match=r"vCPU [01] wrote to the unknown port 0x80"):
        run_payload(Payload(out_0x80, 0, 0, 0, 0, 0, 0, 0))


def test_a_payload_that_reports_nonsense() -> None:
    out_0x77 = bytes.fromhex("ba01050000 b077 ee ebfe")
    with pytest.raises(MeasurementError, match=r"0x77|119"):
        run_payload(Payload(out_0x77, 0, 0, 0, 0, 0, 0, 0))


def test_an_error_in_a_hook_comes_through() -> None:
    def mark() -> None:
        raise LookupError("the tracer is gone")

    with pytest.raises(LookupError, match="the tracer is gone"):
        storm_of("self", hooks=Hooks(mark=mark), timeout_s=0.05)


def test_an_interrupt_in_a_tick_stops_the_guest() -> None:
    def tick(sent: int) -> None:
        if sent > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storm_of("unicast-blocked", hooks=Hooks(tick=tick), count=100_000)


def test_ten_storms_in_a_row_leave_nothing() -> None:
    before = descriptors()
    for _ in range(10):
        storm_of("unicast-halted", count=5)
        assert descriptors() == before


def test_the_guests_memory_is_given_back() -> None:
    """Twenty storms with 40 MiB of logs each: far more than is resident afterwards."""

    def resident_kib() -> int:
        text = Path("/proc/self/status").read_text()
        found = re.search(r"^RssShmem:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    before = resident_kib()
    payload = load_payload()
    for _ in range(20):
        Machine(payload, 2, LogSizes(400_000, 500_000), StormSendMethod.X2APIC).__exit__()
    assert resident_kib() - before < 80 * 1024
