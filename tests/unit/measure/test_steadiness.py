# SPDX-License-Identifier: Apache-2.0
"""What two looks around a storm say, and what each kind of change weighs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import storm

from ipitrace.abi.storm import SEND
from ipitrace.base.errors import ExitCode
from ipitrace.host.conditions import Conditions, CpuLook, ThreadLook
from ipitrace.host.files import HostFiles
from ipitrace.measure.online import gone_offline
from ipitrace.measure.steadiness import Looks, Setting, compare, placed, silence
from ipitrace.recording.disturbances import describe_disturbances
from ipitrace.recording.result import Disturbance
from ipitrace.words.scenarios import SCENARIOS, TargetState

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
HZ = 1e9
S = 1_000_000_000


def thread(tid: int, cpu: int, **changes: Any) -> ThreadLook:
    look = ThreadLook(tid, (cpu,), cpu, ran_ns=0, run_delay_ns=0, migrations=1)
    return replace(look, **changes)


def cpu(number: int, **changes: Any) -> CpuLook:
    look = CpuLook(number, "performance", (800_000, 3_000_000), 2_500_000, 0, 0.0)
    return replace(look, **changes)


START = Conditions(
    at_ns=0,
    suspended_ns=0,
    threads=(thread(10, 2), thread(11, 3)),
    cpus=(cpu(2), cpu(3)),
    online=(0, 1, 2, 3),
    smt="off",
    turbo=True,
)
# Ten seconds, in which the sender never slept.
END = replace(START, at_ns=10 * S, threads=(thread(10, 2, ran_ns=10 * S), thread(11, 3)))
SETTING = Setting(
    scenario=BY_NAME["unicast-running"],
    targets=(1,),
    pinned=(2, 3),
    ours=True,
    first=START,
    before=START,
    tsc_hz=HZ,
    warmup=0,
)


def sends(*gaps_s: float, lost: int | None = None) -> Any:
    """One storm with these times between its sends."""
    log = np.zeros(len(gaps_s) + 1, SEND)
    log["send_tsc"] = 1000 + (HZ * np.cumsum([0.0, *gaps_s])).astype(np.int64)
    log["ack_tsc"] = log["send_tsc"] + 10
    if lost is not None:
        log["ack_tsc"][lost] = 0
    return storm(log, [])


EVEN = sends(*[0.1] * 100)


def found(
    end: Conditions = END,
    *,
    start: Conditions = START,
    the_storm: Any = EVEN,
    setting: Setting = SETTING,
    **looks: Any,
) -> list[Disturbance]:
    return list(compare(Looks(start, end, **looks), the_storm, setting))


def moved(vcpu: int, **changes: Any) -> Conditions:
    threads = list(END.threads)
    threads[vcpu] = replace(threads[vcpu], **changes)
    return replace(END, threads=tuple(threads))


def with_cpu(number: int, **changes: Any) -> Conditions:
    cpus = tuple(replace(c, **changes) if c.cpu == number else c for c in END.cpus)
    return replace(END, cpus=cpus)


def test_nothing_happened() -> None:
    assert found() == []
    assert list(compare(Looks(), EVEN, SETTING)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allowed_cpus": (2,)}, "was moved to CPU 2"),
        ({"allowed_cpus": (0, 1, 2, 3)}, "was moved to CPUs 0, 1, 2, 3"),
        ({"last_cpu": 0}, "last ran on CPU 0"),
        ({"migrations": 2}, "was migrated 1 time"),
        ({"migrations": 3}, "was migrated 2 times"),
    ],
)
def test_a_thread_of_ours_that_is_elsewhere(changes: dict[str, Any], words: str) -> None:
    (only,) = found(moved(1, **changes))
    assert (only.kind, only.worthless) == ("moved", True)
    assert only.says == f"vCPU 1's thread, which should run on CPU 3, {words}"


def test_events_on_a_cpu_that_the_vcpu_has_no_business_on() -> None:
    assert found(seen_on={1: {3: 500}}) == []
    (only,) = found(seen_on={1: {3: 500, 2: 1}})
    assert only.worthless
    assert "ran on CPU 2 according to its host events" in only.says


def test_threads_that_may_move_do() -> None:
    free = tuple(replace(t, allowed_cpus=(0, 1, 2, 3)) for t in START.threads)
    start = replace(START, threads=free)
    later = tuple(replace(t, allowed_cpus=(0, 1, 2, 3), last_cpu=0, migrations=9) for t in free)
    end = replace(END, threads=(replace(later[0], ran_ns=10 * S), later[1]))
    setting = replace(SETTING, pinned=None, first=start, before=start)
    assert found(end, start=start, setting=setting) == []


def test_an_owner_may_move_its_vcpus_but_not_crowd_them() -> None:
    theirs = replace(SETTING, ours=False)
    (told_only,) = found(moved(1, allowed_cpus=(1,), last_cpu=1), setting=theirs)
    assert not told_only.worthless
    (crowded,) = found(moved(1, allowed_cpus=(2,), last_cpu=2), setting=theirs)
    assert crowded.worthless


def test_a_stop_is_neither_running_nor_waiting() -> None:
    gap = sends(*[0.1] * 50, 3.0, *[0.1] * 20)
    ran = replace(END.threads[0], ran_ns=7 * S)
    (only,) = found(replace(END, threads=(ran, END.threads[1])), the_storm=gap)
    assert (only.kind, only.worthless) == ("stopped", True)
    assert only.says == "the guest was stopped for 2.9 s of a storm of 10.0 s"
    # The same silence, in which the sender waited for a CPU.
    waited = replace(ran, run_delay_ns=3 * S)
    (told_only,) = found(replace(END, threads=(waited, END.threads[1])), the_storm=gap)
    assert (told_only.kind, told_only.worthless) == ("waited", False)
    assert told_only.share == pytest.approx(0.3)


def test_a_stop_in_a_long_storm_is_told_and_no_more() -> None:
    gap = sends(*[0.1] * 500, 3.0, *[0.1] * 20)
    end = replace(
        END, at_ns=55 * S, threads=(replace(END.threads[0], ran_ns=52 * S), thread(11, 3))
    )
    (only,) = found(end, the_storm=gap)
    assert (only.kind, only.worthless) == ("stopped", False)


def test_an_ipi_that_timed_out_is_no_stop() -> None:
    gap = sends(*[0.1] * 50, 5.0, *[0.1] * 20, lost=50)
    assert silence(gap, HZ)[1] == pytest.approx(0.0, abs=1e-6)
    end = moved(0, ran_ns=5 * S)
    assert found(end, the_storm=gap) == []


def test_a_target_that_is_kept_preempted_is_meant_to_wait() -> None:
    waiting = moved(1, run_delay_ns=8 * S)
    (only,) = found(waiting)
    assert only.kind == "waited"
    assert only.says == (
        "vCPU 1's thread waited 8000 ms for a CPU that other threads used, measured between the "
        "host samples before and after a storm of 10000 ms"
    )
    preempted = replace(SETTING.scenario, target_state=TargetState.PREEMPTED)
    assert found(waiting, setting=replace(SETTING, scenario=preempted)) == []


def test_overcommitted_vcpus_are_meant_to_wait() -> None:
    setting = replace(SETTING, scenario=BY_NAME["unicast-overcommit"])
    for vcpu in (0, 1):
        waiting = moved(vcpu, run_delay_ns=8 * S)
        assert [one.kind for one in found(waiting)] == ["waited"]
        assert found(waiting, setting=setting) == []
    (only,) = found(moved(0, last_cpu=1), setting=setting)
    assert (only.kind, only.worthless) == ("moved", True)


@pytest.mark.parametrize(
    ("end", "kind", "worthless", "words"),
    [
        (replace(END, suspended_ns=S), "suspended", True, "suspended for 1.0 s"),
        (replace(END, online=(0, 1, 2)), "hotplug", True, "CPU 3 went offline"),
        (replace(END, online=(1, 2, 3)), "hotplug", False, "the set of online CPUs changed"),
        (replace(END, smt="on"), "hotplug", False, "SMT changed from off to on"),
        (replace(END, turbo=False), "frequency", False, "turbo changed from True to False"),
        (with_cpu(2, governor="powersave"), "frequency", False, "CPU 2's governor changed"),
        (with_cpu(2, limits_khz=(1, 2)), "frequency", False, "CPU 2's frequency limits"),
        (with_cpu(3, khz=1_500_000), "frequency", False, "changed from 2500 to 1500 MHz"),
        (with_cpu(3, throttled=1), "throttled", False, "CPU 3 was throttled because of heat"),
        (with_cpu(3, stolen_s=2.0), "stolen", False, "took 20% of CPU 3's time"),
    ],
)
def test_what_the_host_did(end: Conditions, kind: str, worthless: bool, words: str) -> None:  # noqa: FBT001
    (only,) = found(end)
    assert (only.kind, only.worthless) == (kind, worthless)
    assert words in only.says


@pytest.mark.parametrize(
    "end",
    [with_cpu(2, khz=2_600_000), with_cpu(2, stolen_s=0.1), replace(END, suspended_ns=100)],
)
def test_what_is_no_more_than_noise(end: Conditions) -> None:
    assert found(end) == []


def test_what_the_kernel_does_not_tell_is_no_change() -> None:
    blind = [
        replace(
            t, allowed_cpus=None, last_cpu=None, ran_ns=None, run_delay_ns=None, migrations=None
        )
        for t in END.threads
    ]
    dark = [CpuLook(c.cpu, None, (None, None), None, None, None) for c in END.cpus]
    end = replace(END, threads=tuple(blind), cpus=tuple(dark), online=None)
    start = replace(end, at_ns=0)
    assert found(end, start=start, setting=replace(SETTING, first=start, before=start)) == []


def test_a_late_tick() -> None:
    (only,) = found(longest_tick_s=0.7)
    assert (only.kind, only.worthless) == ("late", False)
    assert found(longest_tick_s=0.4) == []


def test_of_one_kind_the_worst_is_told_and_how_many() -> None:
    little, much = (Disturbance("waited", f"{n}", worthless=False, share=n) for n in (0.2, 0.6))
    come = Disturbance("neighbour", "a VM came", worthless=False)
    bad = Disturbance("moved", "it moved", worthless=True)
    said = [
        *placed([little, bad], "self", 3, "off"),
        *placed([much, come], "self", 4, "full"),
        Disturbance("run", "another run", worthless=False),
    ]
    assert list(describe_disturbances(said, worthless=True)) == [
        "it moved (repetition 3: self, off)"
    ]
    assert list(describe_disturbances(said, worthless=False)) == [
        "0.6 (repetition 4: self, full; also in 1 other repetition)",
        "a VM came (repetition 4: self, full)",
        "another run",
    ]


def test_a_storm_that_fails_since_a_cpu_went_offline(tmp_path: Path) -> None:
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-2\n")
    error = gone_offline((2, 3), HostFiles(tmp_path))
    assert error is not None
    assert error.message == "CPU 3 went offline during the run."
    assert error.exit_code == ExitCode.UNTRUSTWORTHY
    assert gone_offline((1, 2), HostFiles(tmp_path)) is None
    assert gone_offline(None, HostFiles(tmp_path)) is None
    assert gone_offline((2, 3), HostFiles(tmp_path / "nothing")) is None
