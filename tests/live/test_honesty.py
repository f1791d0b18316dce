# SPDX-License-Identifier: Apache-2.0
"""Numbers that two independent witnesses must agree on."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import assert_sound
from numpy.typing import NDArray

import ipitrace
from ipitrace.base import resources
from ipitrace.measure.guests import micro_guest
from ipitrace.measure.request import RunRequest
from ipitrace.measure.run import run as run_pipeline
from ipitrace.measure.tracers import Tracers
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import PerSide
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.tracer import Tracer
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import MODES, SCENARIOS, Mode, select_scenarios

pytestmark = pytest.mark.live

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
WARMUP = 20
# What happens to a guest at its own sends alone; not what the host's scheduler adds.
OF_THE_GUEST = (
    *(Kind.KVM_APIC_IPI, Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ, Kind.KVM_MSR),
    *(Kind.KVM_APIC, Kind.KVM_EOI, Kind.KVM_HYPERCALL),
)
TARGET_VECTOR = 0xF0
EMULATIONS = ("insn_emulation", "insn_emulation_fail")  # KVM's own counters


@dataclass(frozen=True)
class Traced:
    """A storm and everything the host showed of it."""

    storm: Storm
    between_marks: NDArray[np.int64]
    seen: NDArray[np.int64]
    events: NDArray[np.void]

    @property
    def inside(self) -> NDArray[np.void]:
        """The events between the marks."""
        ts_ns = self.events["ts_ns"]
        return self.events[(ts_ns >= self.storm.start.ts_ns) & (ts_ns <= self.storm.end.ts_ns)]


def trace(tracer: Tracer, name: str, n_vcpus: int, count: int) -> Traced:
    tracer.take()
    before = tracer.seen()
    guest = MicroGuest.prepare(n_vcpus, None)
    request = StormRequest(BY_NAME[name], n_vcpus, count, WARMUP, 60_000, timeout_s=20.0)
    hooks = Hooks(tracer.set_vcpu_threads, tracer.seen, lambda _sent: tracer.drain())
    tracer.attach()
    try:
        storm = guest.run(request, hooks)
    finally:
        tracer.detach()
    tracer.drain()
    assert storm.start.events_seen is not None
    assert storm.end.events_seen is not None
    return Traced(
        storm,
        (storm.end.events_seen - storm.start.events_seen).astype(np.int64),
        (tracer.seen() - before).astype(np.int64),
        tracer.take(),
    )


@pytest.fixture(scope="module")
def tracers() -> Iterator[dict[int, Tracer]]:
    """One tracer for guests of two vCPUs and one for guests of four."""
    with (
        Tracer.load(pid=os.getpid(), n_vcpus=2) as two,
        Tracer.load(pid=os.getpid(), n_vcpus=4) as four,
    ):
        yield {2: two, 4: four}


class Sink:
    """Counts the rows of a recording that is not kept."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def append(
        self, table: str, columns: Mapping[str, NDArray[Any]], meanings: Mapping[str, str]
    ) -> None:
        assert set(columns) == set(meanings)
        self.rows[table] += len(next(iter(columns.values())))


class Neighbour:
    """Another process whose guest storms without a pause, and says how far it is."""

    SCRIPT = """
import sys, time
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios
def tick(sent):
    print(time.monotonic_ns(), sent, flush=True)
request = StormRequest(select_scenarios(["unicast-running"])[0], 2, 5_000_000, 0, 0, 30.0)
MicroGuest.prepare(2, None).run(request, Hooks(tick=tick))
"""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(ipitrace.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._said: list[tuple[int, int]] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # cut off by its end
            ts_ns, sent = map(int, line.split())
            with self._more:
                self._said.append((ts_ns, sent))
                self._more.notify_all()

    def sent_by(self, ts_ns: int) -> int:
        """IPIs it had sent when it first spoke after `ts_ns`."""
        with self._more:
            assert self._more.wait_for(lambda: self._said and self._said[-1][0] > ts_ns, 60)
            return next(sent for at, sent in self._said if at > ts_ns)

    def sent_before(self, ts_ns: int) -> int:
        """IPIs it had sent when it last spoke before `ts_ns`."""
        with self._more:
            return max(sent for at, sent in self._said if at < ts_ns)

    def sent_anything(self) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self._said and self._said[-1][1] > 0, 60)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    other = Neighbour()
    other.sent_anything()
    yield other
    other.stop()


@pytest.mark.parametrize(
    ("name", "count"), [("unicast-running", 100), ("unicast-halted", 500), ("self", 1000)]
)
def test_a_storming_neighbour_is_not_counted(
    tracers: dict[int, Tracer], neighbour: Neighbour, name: str, count: int
) -> None:
    for _ in range(20):  # the two share CPUs: a short storm may pass while the other waits
        traced = trace(tracers[2], name, 2, count)
        start_ns, end_ns = traced.storm.start.ts_ns, traced.storm.end.ts_ns
        if neighbour.sent_before(end_ns) > neighbour.sent_by(start_ns):
            break
    else:
        pytest.fail("the neighbour did not storm meanwhile")
    assert len(traced.storm.sends) == count
    assert traced.between_marks[Kind.KVM_APIC_IPI].tolist() == [count, 0]
    # And over the whole life of the guest: every IPI it sent, and no other.
    assert traced.seen[Kind.KVM_APIC_IPI].tolist() == [count + WARMUP, 0]


@pytest.mark.parametrize(
    ("name", "n_vcpus", "targets"),
    [
        ("unicast-running", 2, 1),
        ("unicast-halted", 2, 1),
        ("unicast-running-xapic", 2, 1),
        ("self", 2, 1),
        ("self-xapic", 2, 1),
        ("broadcast", 2, 1),
        ("broadcast-halted", 4, 3),
        ("broadcast", 4, 3),
    ],
)
def test_guest_and_host_count_the_same(
    tracers: dict[int, Tracer], name: str, n_vcpus: int, targets: int
) -> None:
    count = 200 if n_vcpus == 2 else 15
    traced = trace(tracers[n_vcpus], name, n_vcpus, count)
    storm = traced.storm
    delivered = sum(storm.handled)
    assert len(storm.sends) == count
    assert delivered == sum(map(len, storm.receipts)) == count * targets
    sent_ipis = traced.between_marks[Kind.KVM_APIC_IPI]
    assert sent_ipis.tolist() == [count] + [0] * (n_vcpus - 1)
    vectors = (0xF1,) if name.startswith("self") else (TARGET_VECTOR,)
    inside = traced.inside
    accepted = inside[inside["kind"] == Kind.KVM_APIC_ACCEPT_IRQ]
    if len(accepted):  # with APICv it is kvm_apicv_accept_irq
        assert set(accepted["detail"].tolist()) == set(vectors)
        assert len(accepted) == count * targets
        by_apic = np.bincount(accepted["word"], minlength=n_vcpus)
        assert by_apic.tolist() == list(storm.handled)
    else:
        assert traced.between_marks[Kind.KVM_APICV_ACCEPT_IRQ].sum() == count * targets
    # S <= R, both and D positive, in the traced storm as in any other.
    send, sent, ack = (storm.sends[f].astype(np.int64) for f in ("send_tsc", "sent_tsc", "ack_tsc"))
    assert ((sent > send) & (ack >= sent)).all()
    for vcpu in range(n_vcpus):
        handler = storm.receipts[vcpu]["handler_tsc"].astype(np.int64)
        assert (handler > send[: len(handler)]).all()


@pytest.mark.parametrize("name", ["unicast-running", "unicast-halted", "self"])
def test_counters_and_records_agree(tracers: dict[int, Tracer], name: str) -> None:
    traced = trace(tracers[2], name, 2, 300)
    losses = tracers[2].losses()
    assert not any(losses.ring_overruns.values())
    for kind in Kind:
        recorded = traced.events[traced.events["kind"] == kind]
        per_vcpu = np.bincount(recorded["vcpu"], minlength=2)
        if kind == Kind.KVM_EMULATE_INSN:
            assert len(recorded) == 0
        elif kind not in (
            *(Kind.KVM_APICV_INHIBIT_CHANGED, Kind.KVM_WRITE_TSC_OFFSET, Kind.KVM_PI_IRTE_UPDATE),
        ):  # of those, other threads' are counted and leave no record
            assert per_vcpu.tolist() == traced.seen[kind].tolist(), kind.name
    for kind in OF_THE_GUEST:
        inside = traced.inside
        per_vcpu = np.bincount(inside[inside["kind"] == kind]["vcpu"], minlength=2)
        assert per_vcpu.tolist() == traced.between_marks[kind].tolist(), kind.name
    assert traced.between_marks[Kind.KVM_APIC_IPI, 0] == 300


def test_the_kernels_counters_saw_no_fewer_halts_than_ipis(tracers: dict[int, Tracer]) -> None:
    """Where a halted target must be woken for each IPI, KVM's statistics say it halted as often."""
    traced = trace(tracers[2], "unicast-halted", 2, 200)
    stats = (traced.storm.start.stats, traced.storm.end.stats)
    if stats[0] is None or stats[1] is None:
        pytest.skip("no KVM_GET_STATS_FD")
    halts = stats[1][1]["halt_exits"] - stats[0][1]["halt_exits"]
    wakeups = int(traced.between_marks[Kind.KVM_VCPU_WAKEUP, 1])
    assert wakeups >= 0.9 * 200
    assert abs(halts - wakeups) <= 2


def assert_emulations_agree(result: RunResult) -> None:
    """What one repetition counted, and KVM's own counters of others."""
    for row in result.scenarios:
        assert row.kvm_stats is not None
        assert row.events_per_ipi is not None
        counted = row.events_per_ipi.get("kvm_emulate_insn", PerSide(0, 0))
        emulated = [row.kvm_stats.get(name, PerSide(0, 0)) for name in EMULATIONS]
        assert counted.sender == pytest.approx(sum(e.sender for e in emulated), abs=0.2)
        assert counted.target == pytest.approx(sum(e.target for e in emulated), abs=0.2)


def test_a_whole_run_is_interleaved_and_its_rows_are_true(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The modes take turns, and programs are attached and record as each mode says."""
    order: list[Mode] = []
    mode: list[Mode] = []
    real_run, real_set_mode = MicroGuest.run, Tracers.set_mode

    def set_mode(tracers: Tracers, wanted: Mode, *, counted_too: bool = True) -> None:
        real_set_mode(tracers, wanted, counted_too=counted_too)
        assert bool(tracers.stages.attached) == (wanted != Mode.OFF)
        assert bool(tracers.evidence.attached) == (wanted == Mode.EVIDENCE)
        counted = Kind.KVM_EMULATE_INSN.name.lower() in tracers.evidence.attached
        assert counted == (counted_too and wanted == Mode.EVIDENCE)
        mode.append(wanted)

    def run(guest: MicroGuest, request: StormRequest, hooks: Hooks) -> Storm:
        order.append(mode[-1])
        return real_run(guest, request, hooks)

    monkeypatch.setattr(Tracers, "set_mode", set_mode)
    monkeypatch.setattr(MicroGuest, "run", run)
    names = ["unicast-running", "unicast-halted"]
    request = RunRequest(select_scenarios(names), 401, None, trace=True)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    sink = Sink()
    result, failure = run_pipeline(request, micro_guest(2), sink, lambda _what, _share: None)
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert failure is None
    assert order == [*MODES, *reversed(MODES)] * 3 * len(names)
    assert sink.rows["guest_ipis"] == 3 * 401 * len(names)
    assert sink.rows["spans"] == 2 * 401 * len(names)
    assert_sound(json.loads(result.to_json()))
    assert_emulations_agree(result)
    assert result.observer is not None
    for row in result.scenarios:
        assert (row.sent, row.delivered, row.repetitions) == (401, 401, 6)
        assert row.events_per_ipi is not None
        assert row.events_per_ipi["kvm_apic_ipi"].sender == 1.0
        assert row.events_per_ipi["kvm_apic_ipi"].target == 0.0
        costs = result.observer.costs[row.name]
        assert set(costs) == {"send", "deliver", "round_trip"}
        for metric, cost in costs.items():
            assert cost.off_p50 > 0
            for watched, extra in (("stages", cost.stages), ("evidence", cost.evidence)):
                assert extra is not None
                assert extra.low <= extra.median <= extra.high
                with capsys.disabled():
                    print(
                        f"\nobserver cost, {row.name}, {metric}, {watched}: "
                        f"{extra.median:+d} cycles ({extra.median / cost.off_p50:+.0%})",
                        end="",
                    )
    halted = result.scenarios[1]
    if halted.kvm_stats is not None:
        assert halted.kvm_stats["halt_exits"].target >= 0.9
        assert halted.exits is not None
        assert halted.exits.target is not None
        assert halted.exits.target["exits"] >= 0.9
    assert result.losses.events_lost == 0
    assert result.clock.guest_tsc_offset in {0, None}
    assert not any(result.clock.causality_violations.values())


def test_arrivals_that_no_program_saw_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a kernel that hides some threads: here half of the vCPUs' arrivals are not recorded."""
    shutil.copytree(resources.bpf_dir(), tmp_path / "bpf")
    program = tmp_path / "bpf" / "sched.bpf.c"
    text = program.read_text()
    arrival = "int in = vcpu_of(next);"
    assert text.count(arrival) == 1
    program.write_text(text.replace(arrival, f"{arrival} if (bpf_ktime_get_ns() & 1) in = -1;"))
    monkeypatch.setattr(resources, "bpf_dir", lambda: tmp_path / "bpf")
    request = RunRequest(select_scenarios(["unicast-blocked"]), 400, None, trace=True)
    result, failure = run_pipeline(request, micro_guest(2), Sink(), lambda _what, _share: None)
    assert failure is None
    assert result.losses.events_lost == 0
    notes = result.scenarios[0].notes
    told = [re.match(r"(\d+) of (\d+) context switches of", note) for note in notes]
    unseen, all_of_them = next(map(int, found.groups()) for found in told if found)
    # each IPI finds its target asleep: it leaves its CPU and comes to it again
    assert all_of_them > 2 * 400
    assert 0.3 * 400 < unseen < all_of_them / 2


@pytest.mark.live("kvm")
def test_the_measured_tsc_rate_is_kvms() -> None:
    request = RunRequest(select_scenarios(["self"]), 2000, None, trace=False)
    result, _failure = run_pipeline(request, micro_guest(2), Sink(), lambda _what, _share: None)
    if result.clock.kvm_tsc_khz is None or result.clock.tsc_error_hz is None:
        pytest.skip("one of the two rates is not known here")
    assert result.clock.tsc_hz == pytest.approx(result.clock.kvm_tsc_khz * 1000, rel=1e-3)
