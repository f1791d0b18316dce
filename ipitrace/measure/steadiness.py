# SPDX-License-Identifier: Apache-2.0
"""Checks whether a storm ran under its intended conditions, from host state before and after it.

These functions are pure: they get the samples as arguments and return Disturbances.
docs/measuring.md explains the limits.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from ipitrace.base.units import NS_PER_S
from ipitrace.host.conditions import Conditions, CpuLook, ThreadLook
from ipitrace.recording.result import Disturbance
from ipitrace.storm.driver import Storm
from ipitrace.words.disturbances import DisturbanceKind
from ipitrace.words.scenarios import OVERCOMMITTED, SENDER, Scenario, TargetState

STOPPED_S: Final = 1.0
"""A guest that sends nothing for this long, without waiting for a CPU, was stopped."""
STOPPED_SHARE: Final = 0.1
"""A stop for this share of a storm (without its waits for CPUs) makes the storm worthless."""
WAITED_SHARE: Final = 0.1
"""Waiting for a CPU is reported from this share of the storm's time."""
STOLEN_SHARE: Final = 0.05
LATE_S: Final = 0.5
"""The time between two ticks from which it is reported; ticks are due every 20 ms."""
FREQUENCY_SHARE: Final = 0.1
SUSPENDED_NS: Final = 10_000_000
"""Far more than the time between two clock readings, and far less than a suspension."""


@dataclass(frozen=True)
class Looks:
    """The samples around and during one storm.

    Attributes:
        start: host state before any vCPU ran; None if it was not sampled.
        end: host state after the storm, while the threads still existed.
        longest_tick_s: the longest time between two of ipitrace's own ticks.
        seen_on: by vCPU, CPU to number of host events; empty unless events were recorded.
    """

    start: Conditions | None = None
    end: Conditions | None = None
    longest_tick_s: float = 0.0
    seen_on: Mapping[int, Mapping[int, int]] = field(default_factory=dict)


NO_LOOKS: Final = Looks()


@dataclass(frozen=True)
class Setting:
    """What the samples of a repetition are compared with.

    Attributes:
        scenario: the one that ran.
        targets: its targets; vCPU 0 sends.
        pinned: the CPU that each vCPU is pinned to; None if the vCPUs may move.
        ours: ipitrace pinned them, and nothing else should move them.
        first: the run's first sample. A guest that ipitrace did not start keeps its threads
            during the whole run.
        before: the sample before this storm's last one. It may belong to the previous
            repetition.
        tsc_hz: the guest TSC's rate; None if it is unknown.
        warmup: sends that are not in the storm's log.
    """

    scenario: Scenario
    targets: tuple[int, ...]
    pinned: tuple[int, ...] | None
    ours: bool
    first: Conditions
    before: Conditions
    tsc_hz: float | None
    warmup: int


def compare(looks: Looks, storm: Storm, setting: Setting) -> Iterator[Disturbance]:
    """Yield the differences from the intended conditions."""
    if looks.start is None or looks.end is None:
        return
    yield from _moved(looks, looks.start, looks.end, setting)
    yield from _lost(looks.start, looks.end, storm, setting)
    if looks.longest_tick_s >= LATE_S:
        yield Disturbance(
            DisturbanceKind.LATE,
            f"ipitrace itself did not run for {looks.longest_tick_s:.1f} s during the storm",
            worthless=False,
        )
    yield from _stolen(looks.start, looks.end)
    yield from _speed(setting.before, looks.end)
    yield from _hotplug(setting, looks.end)


def _moved(
    looks: Looks, start: Conditions, end: Conditions, setting: Setting
) -> Iterator[Disturbance]:
    """vCPU threads that ran on other CPUs than intended."""
    involved = sorted({0, *setting.targets})
    crowded = _crowded(end.threads, involved) and not _crowded(setting.first.threads, involved)
    for vcpu, (early, late) in enumerate(zip(start.threads, end.threads, strict=True)):
        wanted = _wanted(vcpu, early, setting)
        found = _elsewhere(vcpu, early, late, wanted, looks.seen_on.get(vcpu, {}))
        if found:
            yield Disturbance(DisturbanceKind.MOVED, found, worthless=setting.ours or crowded)


def _wanted(vcpu: int, early: ThreadLook, setting: Setting) -> tuple[int, ...] | None:
    """The CPUs that the vCPU's thread should be allowed during the whole storm."""
    if setting.ours and setting.pinned is not None:
        return (setting.pinned[vcpu],)
    same = [t for t in setting.first.threads if t.tid == early.tid]
    return same[0].allowed_cpus if same else early.allowed_cpus


def _elsewhere(
    vcpu: int,
    early: ThreadLook,
    late: ThreadLook,
    wanted: tuple[int, ...] | None,
    seen_on: Mapping[int, int],
) -> str | None:
    """How a thread is known to have run on other CPUs; None if nothing shows it."""
    if wanted is None:
        return None
    where = f"vCPU {vcpu}'s thread, which should run on {cpus_of(wanted)},"
    for look in (late, early):
        if look.allowed_cpus is not None and look.allowed_cpus != wanted:
            return f"{where} was moved to {cpus_of(look.allowed_cpus)}"
    strange = sorted(set(seen_on) - set(wanted))
    if strange:
        return f"{where} ran on {cpus_of(strange)} according to its host events"
    if late.last_cpu is not None and late.last_cpu not in wanted:
        return f"{where} last ran on CPU {late.last_cpu}"
    if len(wanted) == 1 and None not in {early.migrations, late.migrations}:
        times = (late.migrations or 0) - (early.migrations or 0)
        if times > 0:
            return f"{where} was migrated {times} time{'s' if times != 1 else ''}"
    return None


def _crowded(threads: Sequence[ThreadLook], involved: Collection[int]) -> bool:
    """The vCPUs that take part outnumber the CPUs that they may use."""
    places = [threads[i].allowed_cpus for i in involved if i < len(threads)]
    known = [set(place) for place in places if place is not None]
    return bool(known) and len(set().union(*known)) < len(known)


def _lost(
    start: Conditions, end: Conditions, storm: Storm, setting: Setting
) -> Iterator[Disturbance]:
    """Time in which vCPUs did not run: they were stopped, were suspended, or waited for a CPU."""
    suspended_ns = end.suspended_ns - start.suspended_ns
    if suspended_ns >= SUSPENDED_NS:
        yield Disturbance(
            DisturbanceKind.SUSPENDED,
            f"the host was suspended for {suspended_ns / NS_PER_S:.1f} s",
            worthless=True,
        )
    if setting.tsc_hz is None:
        return
    storm_s, silence_s = silence(storm, setting.tsc_hz)
    waits = [_delay_s(a, b) for a, b in zip(start.threads, end.threads, strict=True)]
    stopped_s = min(silence_s, _idle_s(start, end, waits, silence_s, ours=setting.ours))
    if stopped_s >= STOPPED_S:
        # Waiting makes a storm longer, but does not make a stop less harmful.
        waited_s = max((wait or 0.0 for wait in waits), default=0.0)
        share = stopped_s / max(storm_s - waited_s, stopped_s)
        yield Disturbance(
            DisturbanceKind.STOPPED,
            f"the guest was stopped for {stopped_s:.1f} s of a storm of {storm_s:.1f} s",
            worthless=share >= STOPPED_SHARE,
            share=share,
        )
    # The thread also waits during the warm-up.
    whole_s = storm_s * (len(storm.sends) + setting.warmup) / max(len(storm.sends), 1)
    meant = _meant_to_wait(setting, len(waits))
    for vcpu, wait_s in enumerate(waits):
        share = min((wait_s or 0.0) / whole_s, 1.0) if whole_s else 0.0
        if share >= WAITED_SHARE and vcpu not in meant:
            yield Disturbance(
                DisturbanceKind.WAITED,
                f"vCPU {vcpu}'s thread waited {1000 * (wait_s or 0):.0f} ms for a CPU that other "
                "threads used, measured between the host samples before and after a storm of "
                f"{1000 * whole_s:.0f} ms",
                worthless=False,
                share=share,
            )


def _meant_to_wait(setting: Setting, n_vcpus: int) -> Collection[int]:
    """The vCPUs that the scenario itself keeps from their CPUs."""
    if setting.scenario.target_state in OVERCOMMITTED:
        return range(n_vcpus)
    return setting.targets if setting.scenario.target_state == TargetState.PREEMPTED else ()


def _idle_s(
    start: Conditions,
    end: Conditions,
    waits: Sequence[float | None],
    silence_s: float,
    *,
    ours: bool,
) -> float:
    """The part of a silence that can be a stop: the sender neither ran nor waited for a CPU.

    In the built-in guest the sender never sleeps. In another guest it sleeps before and after
    the storm. There the silence is assumed to contain all time that threads waited for a CPU.
    """
    ran = [_ran_s(a, b) for a, b in zip(start.threads, end.threads, strict=True)][:1]
    if ours and ran and ran[0] is not None and waits[0] is not None:
        return (end.at_ns - start.at_ns) / NS_PER_S - ran[0] - waits[0]
    return silence_s - max((wait or 0.0 for wait in waits), default=0.0)


def silence(storm: Storm, tsc_hz: float) -> tuple[float, float]:
    """The storm's duration, and by how much the longest time between two sends exceeds the median.

    Both are in seconds and cover the measured sends of vCPU 0. The time after an IPI that timed
    out does not count, because that wait is reported as an incomplete IPI.
    """
    sends = storm.sends_of(SENDER)
    stamps = sends["send_tsc"].astype(np.int64)
    if len(stamps) < 2:  # noqa: PLR2004
        return 0.0, 0.0
    gaps = np.diff(stamps)
    answered = sends["ack_tsc"][:-1] > 0
    longest = int(gaps[answered].max(initial=0))
    usual = int(np.median(gaps))
    return float(stamps[-1] - stamps[0]) / tsc_hz, max(longest - usual, 0) / tsc_hz


def _ran_s(early: ThreadLook, late: ThreadLook) -> float | None:
    if early.ran_ns is None or late.ran_ns is None:
        return None
    return (late.ran_ns - early.ran_ns) / NS_PER_S


def _delay_s(early: ThreadLook, late: ThreadLook) -> float | None:
    if early.run_delay_ns is None or late.run_delay_ns is None:
        return None
    return (late.run_delay_ns - early.run_delay_ns) / NS_PER_S


def _stolen(start: Conditions, end: Conditions) -> Iterator[Disturbance]:
    """CPU time that a hypervisor below this host took (steal time)."""
    for early, late in zip(start.cpus, end.cpus, strict=True):
        if early.stolen_s is None or late.stolen_s is None or end.at_ns <= start.at_ns:
            continue
        share = (late.stolen_s - early.stolen_s) * NS_PER_S / (end.at_ns - start.at_ns)
        if share >= STOLEN_SHARE:
            yield Disturbance(
                DisturbanceKind.STOLEN,
                f"the hypervisor below this host took {share:.0%} of CPU {late.cpu}'s time "
                "(steal time)",
                worthless=False,
                share=min(share, 1.0),
            )


def _speed(before: Conditions, after: Conditions) -> Iterator[Disturbance]:
    """CPU frequencies, and the settings that decide them."""
    if before.turbo != after.turbo:
        yield _changed("turbo", before.turbo, after.turbo)
    old = {cpu.cpu: cpu for cpu in before.cpus}
    for late in after.cpus:
        early = old.get(late.cpu)
        if early is None:
            continue
        if early.governor != late.governor:
            yield _changed(f"CPU {late.cpu}'s governor", early.governor, late.governor)
        if early.limits_khz != late.limits_khz:
            yield _changed(
                f"CPU {late.cpu}'s frequency limits in kHz", early.limits_khz, late.limits_khz
            )
        yield from _frequency(early, late)
        if late.throttled is not None and late.throttled > (early.throttled or 0):
            yield Disturbance(
                DisturbanceKind.THROTTLED,
                f"CPU {late.cpu} was throttled because of heat",
                worthless=False,
            )


def _frequency(early: CpuLook, late: CpuLook) -> Iterator[Disturbance]:
    if early.khz and late.khz and abs(late.khz - early.khz) > FREQUENCY_SHARE * early.khz:
        yield Disturbance(
            DisturbanceKind.FREQUENCY,
            f"CPU {late.cpu}'s frequency changed from {early.khz / 1000:.0f} to "
            f"{late.khz / 1000:.0f} MHz",
            worthless=False,
        )


def _hotplug(setting: Setting, after: Conditions) -> Iterator[Disturbance]:
    """CPUs that went offline or came online."""
    before = setting.before
    if before.smt != after.smt:
        yield _changed("SMT", before.smt, after.smt, kind=DisturbanceKind.HOTPLUG)
    if before.online is None or after.online is None:
        return
    needed = set(setting.pinned or ()) & set(setting.first.online or ())
    gone = sorted(needed - set(after.online))
    if gone:
        yield Disturbance(DisturbanceKind.HOTPLUG, f"{cpus_of(gone)} went offline", worthless=True)
    if before.online != after.online and not gone:
        yield _changed(
            "the set of online CPUs", before.online, after.online, kind=DisturbanceKind.HOTPLUG
        )


def _changed(
    what: str,
    before: object,
    after: object,
    *,
    kind: DisturbanceKind = DisturbanceKind.FREQUENCY,
) -> Disturbance:
    return Disturbance(kind, f"{what} changed from {before} to {after}", worthless=False)


def cpus_of(cpus: Iterable[int]) -> str:
    """A text that names the CPUs, at most eight of them."""
    numbers = sorted(cpus)
    few = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")  # noqa: PLR2004
    return f"CPU{'s' if len(numbers) != 1 else ''} {few or 'unknown'}"


def placed(
    found: Iterable[Disturbance], scenario: str, repetition: int, mode: str
) -> Iterator[Disturbance]:
    """The same disturbances, assigned to a repetition."""
    for one in found:
        yield replace(one, scenario=scenario, repetition=repetition, mode=mode)
