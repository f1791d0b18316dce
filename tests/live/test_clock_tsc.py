# SPDX-License-Identifier: Apache-2.0
"""The clocks on this machine: sandwiches, KVM's own figures, and a guest's stamps."""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipitrace.clock import Clock, GuestTsc, HostClockMap, Sandwich, count_violations
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.tracer import Tracer
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import SCENARIOS


def within(mapped: HostClockMap, ts_ns: NDArray[Any]) -> bool:
    """Each stamp lies between the first and the last sandwich that the map uses."""
    return bool(((mapped.ts_ns[0] <= ts_ns) & (ts_ns <= mapped.ts_ns[-1])).all())


def sandwiches_during(seconds: float) -> list[Sandwich]:
    clock, taken = Clock(), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        taken.append(clock.sandwich())
        time.sleep(0.01)
    return taken


def test_each_inner_sandwich_lies_within_the_bound_of_a_map_made_without_it() -> None:
    taken = sandwiches_during(1.0)
    kept, left_out = taken[::2], taken[1:-1:2]
    mapped = HostClockMap.build(kept)
    stamps = np.array([s.ts_ns for s in left_out])
    error = np.abs(mapped.to_tsc(stamps) - np.array([s.tsc for s in left_out]))
    own = np.array([s.half_width_cycles for s in left_out])
    assert (error <= mapped.bound_cycles(stamps) + own).all()
    assert within(mapped, stamps)


IN_DEBUGFS = """
import json, os
from ipitrace.host.vm_tsc import read_vm_tsc
from ipitrace.storm.micro.kvm import Vm
vm = Vm()
vcpus = [vm.create_vcpu(i) for i in range(2)]
vcpus[1].set_tsc_offset(-12345)
told = [vcpu.tsc_offset() for vcpu in vcpus]
found = read_vm_tsc(os.getpid(), vm.fd)
print(json.dumps([told, found.absent, {i: [t.offset, t.scale] for i, t in found.vcpus.items()}]))
"""


@pytest.mark.live("root", "kvm")
def test_debugfs_says_the_same_as_the_vcpu_itself() -> None:
    mount = 'mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; exec "$0" -c "$1"'
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, IN_DEBUGFS],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    told, absent, found = json.loads(answer)
    if absent is not None:
        assert "cannot be read" in absent  # lockdown: the one good reason
        pytest.skip(absent)
    assert {int(vcpu): offset for vcpu, (offset, _) in found.items()} == dict(enumerate(told))
    assert [scale for _, scale in found.values()] == [1.0, 1.0]


@pytest.mark.live
def test_a_storm_contradicts_itself_nowhere() -> None:
    """Host events, by ns and map, between the guest's own stamps of the same IPI, by TSC."""
    scenario = next(s for s in SCENARIOS if s.pattern == "unicast" and s.target_state == "running")
    clock = Clock()
    sandwiches = [clock.sandwich()]
    time.sleep(0.02)

    with Tracer.load(pid=os.getpid(), n_vcpus=2, only=["kvm_apic_ipi"]) as tracer:

        def tick(_sent: int) -> None:
            sandwiches.append(clock.sandwich())
            tracer.drain()

        tracer.attach()
        sandwiches.append(clock.sandwich())
        hooks = Hooks(threads_known=tracer.set_vcpu_threads, mark=tracer.seen, tick=tick)
        storm = MicroGuest.prepare(2, None).run(StormRequest(scenario, 2, 2000, 100, 60_000), hooks)
        tracer.detach()
        time.sleep(0.02)
        sandwiches.append(clock.sandwich())
        tracer.drain()
        events = tracer.take()
    assert storm.tsc_offsets_start == storm.tsc_offsets_end == (0, 0)
    events = events[(events["kind"] == Kind.KVM_APIC_IPI) & (events["vcpu"] == 0)]
    events = events[-len(storm.sends) :]  # the first hundred were to warm up
    mapped = HostClockMap.build(sandwiches)
    host = mapped.to_tsc(events["ts_ns"])
    bound = mapped.bound_cycles(events["ts_ns"])
    assert within(mapped, events["ts_ns"])
    ipi_tsc = GuestTsc(storm.tsc_offsets_start[0] or 0).to_guest(host)
    pairs = {
        "ipi before send": (storm.sends["send_tsc"], ipi_tsc),
        "sent before ipi": (ipi_tsc, storm.sends["sent_tsc"]),
    }
    assert len(ipi_tsc) == len(storm.sends) == 2000
    assert count_violations(pairs, bound) == dict.fromkeys(pairs, 0)
    # The check can fail: an offset of one IPI's length is noticed.
    late = int(np.median(storm.sends["sent_tsc"] - storm.sends["send_tsc"]))
    wrong = {"sent before ipi": (ipi_tsc + np.uint64(late), storm.sends["sent_tsc"])}
    assert count_violations(wrong, bound)["sent before ipi"] > 1000


def spin(stop: threading.Event) -> None:
    while not stop.is_set():
        pass


def test_the_clock_is_read_while_other_threads_run() -> None:
    """A sandwich taken beside a busy thread is wide at worst, never wrong."""
    stop = threading.Event()
    busy = threading.Thread(target=spin, args=(stop,))
    busy.start()
    try:
        taken = sandwiches_during(0.3)
    finally:
        stop.set()
        busy.join()
    mapped = HostClockMap.build(taken)
    rate = mapped.cycles_per_ns
    for sandwich in taken:
        error = abs(int(mapped.to_tsc(sandwich.ts_ns)) - sandwich.tsc)
        assert error <= float(mapped.bound_cycles(sandwich.ts_ns)) + sandwich.half_width_cycles
    assert 0.3 < rate < 10
