# SPDX-License-Identifier: Apache-2.0
"""A whole run with a scripted guest and a scripted tracer: order, contents, and what is kept."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from strategies import counts, receipts, sends, storm

from ipitrace.abi.events import HOST_EVENT
from ipitrace.base.errors import HostError, InterruptedRunError, MeasurementError, UsageError
from ipitrace.host.cpus import Pinning
from ipitrace.host.neighbours import Neighbours
from ipitrace.measure import lookout, repetition
from ipitrace.measure import run as run_module
from ipitrace.measure.guests import Guest
from ipitrace.measure.request import WARMUP, RunRequest
from ipitrace.measure.run import run
from ipitrace.measure.tracers import Tracers
from ipitrace.recording.guest import GuestResult, micro_guest
from ipitrace.recording.result import RunResult
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import MODES, Mode, Pattern, Scenario, select_scenarios

KHZ = 2_000_000
ALONE = Neighbours((), (), 0, None, None, None, None, {})


@dataclass
class Scripted:
    """A guest whose storms are made up; `fail` is raised in the storm of that number."""

    fail: dict[int, BaseException] = field(default_factory=dict)
    tsc_khz: int | None = KHZ
    requests: list[StormRequest] = field(default_factory=list)
    n_vcpus: int = 2
    pinned_cpus: tuple[int, ...] | None = None
    max_count: int = 10_000
    apic_ids: tuple[int, ...] | None = None

    def unsupported(self, scenario: Scenario) -> str | None:
        return "it sends in turn" if scenario.pattern == Pattern.RING else None

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        return (0,) if scenario.pattern == Pattern.SELF else (1,)

    def cpus_in(self, _scenario: Scenario) -> tuple[int, ...] | None:
        return self.pinned_cpus

    def describe(self) -> GuestResult:
        return micro_guest(2, None, "0" * 64)

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        self.requests.append(request)
        if error := self.fail.get(len(self.requests) - 1):
            raise error
        hooks.threads_known(())
        hooks.tick(request.warmup + request.count)
        hooks.mark()
        hooks.over()
        first = 1_000_000 * len(self.requests)
        stamps = [(t, t + 20, t + 300) for t in range(first, first + 1000 * request.count, 1000)]
        log = sends(stamps)
        log["seq"] += request.warmup
        handled = receipts([t + 100 + len(self.requests) for t, *_ in stamps])
        of_none = receipts([])
        own = self.targets(request.scenario) == (0,)
        made = storm(log, [handled, of_none] if own else [of_none, handled])
        seen = counts(2, {(Kind.KVM_APIC_IPI, 0): request.count})
        assert made.end is not None
        return replace(made, tsc_khz=self.tsc_khz, end=replace(made.end, events_seen=seen))


@dataclass(eq=False)
class ScriptedTracer:
    """Records nothing that happened, and when it was attached."""

    attached: bool = False
    load_s: float = 0.5
    attach_s: float = 0.25
    hooks: dict[str, str] = field(default_factory=lambda: {"kvm_apic_ipi": "raw"})
    left_out: dict[str, str] = field(default_factory=dict)
    slots_per_ring: int = 65_536
    left_detached: frozenset[Kind] = frozenset()

    def attach(self, *, without: frozenset[Kind]) -> None:
        self.attached, self.left_detached = True, without

    def detach(self) -> None:
        self.attached = False

    def seen(self) -> Any:
        return counts(2, {(Kind.KVM_APIC_IPI, 0): 7})

    def losses(self) -> Any:
        return SimpleNamespace(ring_overruns={"kvm_eoi": 3, "kvm_exit": 0}, recursion_misses={})

    def take(self) -> Any:
        return np.zeros(0, HOST_EVENT)

    def set_vcpu_threads(self, _tids: object, _switches_on: object = ()) -> None: ...
    def drain(self) -> int:
        return 0

    def keep_at_most(self, _n: int) -> None: ...


class ScriptedTracers(Tracers):
    """Two of them, and the modes that were set."""

    def __init__(self) -> None:
        super().__init__(cast("Any", ScriptedTracer()), cast("Any", ScriptedTracer()))
        object.__setattr__(self, "modes", [])

    modes: list[Mode]

    def set_mode(self, mode: Mode, *, counted_too: bool = True) -> None:
        super().set_mode(mode, counted_too=counted_too)
        self.modes.append(mode)
        assert (self.stages.attached, self.evidence.attached) == {
            Mode.OFF: (False, False),
            Mode.STAGES: (True, False),
            Mode.EVIDENCE: (True, True),
        }[mode]


@dataclass
class Rows:
    """Keeps every table's rows."""

    tables: dict[str, list[dict[str, list[Any]]]] = field(default_factory=dict)

    def append(self, table: str, columns: Any, _meanings: object) -> None:
        rows = {name: column.tolist() for name, column in columns.items()}
        self.tables.setdefault(table, []).append(rows)


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No storm is checked against time, and other processes of this host play no part."""
    monkeypatch.setattr(
        repetition, "run_plausible", lambda guest, request, hooks: guest.run(request, hooks)
    )
    for module in (run_module, lookout):
        monkeypatch.setattr(module, "read_neighbours", lambda **_own: ALONE)
    monkeypatch.setattr(lookout, "other_runs", list)
    monkeypatch.setattr(run_module, "announced", lambda _cpus: nullcontext())


def guest_of(driver: Scripted, *, pid: int | None = None, ours: bool = True) -> Guest:
    pinning = Pinning(None, overcommitted=False, why="scripted")
    return Guest(driver, pinning, pid, None, frozenset(), tsc_stated_by="the script", ours=ours)


def request_of(*names: str, **changes: Any) -> RunRequest:
    chosen = select_scenarios(names or ("unicast-running", "self"))
    request = RunRequest(chosen, count=60, pace_cycles=None, trace=False, repeat=6, seed=5)
    return replace(request, **changes)


def measured(
    request: RunRequest,
    driver: Scripted,
    tracers: ScriptedTracers | None = None,
    monkeypatch: pytest.MonkeyPatch | None = None,
    told: Callable[[str, float], None] = lambda _name, _share: None,
) -> tuple[RunResult, Any, Rows]:
    rows = Rows()
    if tracers is not None and monkeypatch is not None:
        monkeypatch.setattr(run_module, "open_tracers", lambda _pid, _n: nullcontext(tracers))
    pid = None if tracers is None else 1
    result, failure = run(request, guest_of(driver, pid=pid), rows, told)
    return result, failure, rows


def repetitions(rows: Rows) -> list[tuple[str, int, str]]:
    return [
        (part["scenario"][0], part["repetition"][0], part["mode"][0])
        for part in rows.tables["guest_ipis"]
    ]


def modes(order: Iterable[tuple[str, int, str]]) -> list[str]:
    return [mode for *_, mode in order]


def test_an_untraced_run() -> None:
    driver = Scripted()
    shares: list[float] = []
    result, failure, rows = measured(
        request_of("unicast-running", "ring", "self"),
        driver,
        told=lambda _name, share: shares.append(share),
    )
    assert failure is None
    assert result.complete
    assert [row.status for row in result.scenarios] == ["measured", "unsupported", "measured"]
    assert [row.name for row in result.scenarios] == ["unicast-running", "ring", "self"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert result.observer_absent == "nothing was traced (--no-trace)"
    assert result.clock.kvm_tsc_khz == KHZ
    order = repetitions(rows)
    assert [number for _name, number, _mode in order] == list(range(12))
    assert Counter(name for name, *_ in order) == {"unicast-running": 6, "self": 6}
    (first, *_rest) = rows.tables["guest_ipis"]
    assert first["seq"] == list(range(WARMUP, WARMUP + 10))


def test_a_traced_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tracers, driver = ScriptedTracers(), Scripted()
    result, failure, rows = measured(request_of(trace=True), driver, tracers, monkeypatch)
    assert failure is None
    order = repetitions(rows)
    assert modes(order) == tracers.modes[:-1]
    assert tracers.modes[-1] == Mode.OFF
    assert Counter(modes(order)) == dict.fromkeys(MODES, 12)
    assert result.observer is not None
    assert result.observer.repetitions == 6
    assert result.losses.events_seen == 2 * 7
    assert result.losses.ring_overruns == {"kvm_eoi": 2 * 3}
    for row in result.scenarios:
        assert [f.order for f in row.repetition_figures] == [
            number for name, number, _mode in order if name == row.name
        ]


def test_completed_repetitions_are_kept_when_a_later_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Scripted(fail={8: MeasurementError("The guest hung.", "Look at it.")})
    tracers = ScriptedTracers()
    result, failure, rows = measured(request_of("self", trace=True), driver, tracers, monkeypatch)
    assert isinstance(failure, MeasurementError)
    assert failure.hint == "Completed repetitions are kept. Look at it."
    assert (result.complete, result.failure) == (False, "The guest hung.")
    (row,) = result.scenarios
    assert len(row.repetition_figures) == 6  # two whole blocks; the third lacks a mode
    assert len(repetitions(rows)) == 8
    assert tracers.modes[-1] == Mode.OFF


def test_a_failure_before_anything_was_completed() -> None:
    failing = {0: MeasurementError("The guest hung.", "Look at it.")}
    result, failure, _rows = measured(request_of("self"), Scripted(fail=failing))
    assert failure is not None
    assert failure.hint == "No repetition was completed. Look at it."
    assert result.scenarios == ()
    with pytest.raises(HostError, match="No room"):
        measured(request_of("self"), Scripted(fail={0: HostError("No room.", "")}))


def test_an_interruption() -> None:
    result, failure, _rows = measured(request_of("self"), Scripted(fail={2: KeyboardInterrupt()}))
    assert isinstance(failure, InterruptedRunError)
    assert failure.hint == "Completed repetitions are kept."
    assert len(result.scenarios[0].repetition_figures) == 2
    with pytest.raises(InterruptedRunError):
        measured(request_of("self"), Scripted(fail={0: KeyboardInterrupt()}))


def test_the_guest_can_run_nothing() -> None:
    with pytest.raises(HostError, match=r"'ring' cannot run here: it sends in turn\."):
        measured(request_of("ring"), Scripted())


def test_more_than_the_guest_can_log() -> None:
    with pytest.raises(UsageError, match="--count 60 is out of range"):
        measured(request_of(), Scripted(max_count=WARMUP + 59))
