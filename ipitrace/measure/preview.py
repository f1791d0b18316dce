# SPDX-License-Identifier: Apache-2.0
"""Finds what a run would attach, send, load and write, without doing it.

This does not connect to the guest, because every transport runs programs there.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ipitrace.base.errors import HostError
from ipitrace.host.access import require_initial_pid_namespace, require_kvm, require_trace_privilege
from ipitrace.measure.guests import MICRO, Foreign, find_foreign, is_micro, micro_guest, vcpus_of
from ipitrace.measure.limits import least_seconds
from ipitrace.measure.plan import Plan, known_tsc_hz, make_plan
from ipitrace.measure.request import RunRequest, sends_in, warmup_of
from ipitrace.recording.result import RunLimits
from ipitrace.storm.driver import Driver
from ipitrace.storm.linux.helper import HELPER, INSTALLED, MODULE, SNP_GUEST
from ipitrace.storm.transport.registry import LOCAL
from ipitrace.tracer.attaching import chosen_events, plan_for_this_kernel
from ipitrace.words.scenarios import (
    OVERCOMMITTED,
    SENDER,
    Pattern,
    Route,
    Scenario,
    TargetState,
    routes_of,
)

_LOADING: Final = (
    "the kernel checks each program only when it is loaded; the run reports the programs that the "
    "kernel refuses, and continues without them"
)


@dataclass(frozen=True)
class PreviewedGuest:
    """The guest that would be measured; `threads` are its vCPUs' threads, if they exist already."""

    kind: str
    what: str
    pid: int | None
    n_vcpus: int | None
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Attaching:
    """BPF programs: event to its hook; and the reason for each event that is not traced."""

    why_nothing: str | None
    programs: Mapping[str, str]
    left_out: Mapping[str, str]
    only_when_loaded: str


@dataclass(frozen=True)
class PreviewedStorms:
    """One scenario's storms.

    Attributes:
        targets: the number of vCPUs to which each send goes; None if unknown.
        sends: the sends of all storms, warm-up included.
        most_per_s: sends per second if the IPIs themselves took no time.
    """

    name: str
    targets: int | None
    repetitions: int
    sends: int
    pace_cycles: int
    most_per_s: float


@dataclass(frozen=True)
class Sending:
    """All storms."""

    storms: int
    sends: int
    least_seconds: float
    modes: tuple[str, ...]
    scenarios: tuple[PreviewedStorms, ...]
    unsupported: Mapping[str, str]
    limits: str


@dataclass(frozen=True)
class Right:
    """A right that the run needs; `lacking` is the reason why this process does not have it."""

    what: str
    lacking: str | None


@dataclass(frozen=True)
class Preview:
    """The result of a dry run."""

    guest: PreviewedGuest
    attaching: Attaching
    sending: Sending
    inside: tuple[str, ...]
    writing: str
    rights: tuple[Right, ...]

    def to_dict(self) -> dict[str, Any]:
        """The preview as JSON types."""
        return {"dry_run": True, **asdict(self)}


def preview(request: RunRequest, vm: str, via: str | None, directory: Path) -> Preview:
    """Find what the run would do, as far as this host shows it without the guest.

    Raises:
        UsageError: no such guest, or the request cannot be carried out.
        HostError: KVM is missing for the built-in guest.
    """
    unsupported: dict[str, str] = {}
    driver: Driver | None = None
    tsc_hz = known_tsc_hz(None)
    if is_micro(vm, via):
        driver = micro_guest(vcpus_of(vm)).driver
        guest = _micro(driver.n_vcpus, driver.pinned_cpus)
        reasons = {s.name: driver.unsupported(s) for s in request.scenarios}
        unsupported = {name: why for name, why in reasons.items() if why is not None}
    elif vm == LOCAL and via in {None, LOCAL}:
        guest = PreviewedGuest("local", "this machine itself", None, os.cpu_count(), ())
        via = LOCAL
    else:
        foreign = find_foreign(vm, via, trace=request.trace)
        via = foreign.way.url
        guest = _foreign(vm, foreign)
    plan = make_plan(
        request,
        [s for s in request.scenarios if s.name not in unsupported],
        traced=_traced(request, guest),
        ours=guest.kind == MICRO,
        tsc_hz=tsc_hz,
        n_vcpus=guest.n_vcpus,
    )
    return Preview(
        guest=guest,
        attaching=_attaching(request, guest),
        sending=_sending(
            plan, {s.name: _routes(s, driver, guest.n_vcpus) for s in plan.scenarios}, unsupported
        ),
        inside=tuple(_inside(request, guest, via, plan.scenarios)),
        writing=_writing(directory),
        rights=tuple(_rights(request, guest, via)),
    )


def _sending(
    plan: Plan, routes: Mapping[str, tuple[Route, ...] | None], unsupported: Mapping[str, str]
) -> Sending:
    repetitions, n_modes = len(plan.sends), plan.n_modes
    storms = []
    for scenario in plan.scenarios:
        known = routes[scenario.name]
        senders = len(known or (SENDER,))
        storms.append(
            PreviewedStorms(
                name=scenario.name,
                targets=None if known is None else len(known[0].targets),
                repetitions=repetitions,
                sends=senders
                * n_modes
                * (
                    sum(sends_in(scenario, sends) for sends in plan.sends)
                    + warmup_of(scenario) * repetitions
                ),
                pace_cycles=plan.paces[scenario.name],
                most_per_s=senders * plan.tsc_hz / max(plan.paces[scenario.name], 1),
            )
        )
    return Sending(
        storms=n_modes * repetitions * len(storms),
        sends=sum(storm.sends for storm in storms),
        least_seconds=least_seconds(plan.storms(), plan.tsc_hz),
        modes=(*plan.modes, *(f"{mode} accounted" for mode in plan.accounted)),
        scenarios=tuple(storms),
        unsupported=unsupported,
        limits=_limits_words(plan.limits),
    )


def _micro(n_vcpus: int, cpus: Iterable[int] | None) -> PreviewedGuest:
    where = "not pinned" if cpus is None else f"pinned to CPUs {', '.join(map(str, cpus))}"
    what = f"the built-in guest, {n_vcpus} vCPUs, {where}; each storm has a fresh VM"
    return PreviewedGuest(MICRO, what, os.getpid(), n_vcpus, ())


def _foreign(name: str, foreign: Foreign) -> PreviewedGuest:
    machine, way = foreign.machine, foreign.way.url
    if machine is None:
        return PreviewedGuest(
            "linux", f"{name}, not a VM of this host, through {way}", None, None, ()
        )
    what = f"{machine.name} ({machine.vmm}), {len(machine.vcpus)} vCPUs, through {way}"
    what = "; odd: ".join([what, *foreign.odd])
    return PreviewedGuest("linux", what, machine.pid, len(machine.vcpus), machine.tids)


def _traced(request: RunRequest, guest: PreviewedGuest) -> bool:
    return request.trace and guest.pid is not None


def _routes(
    scenario: Scenario, driver: Driver | None, n_vcpus: int | None
) -> tuple[Route, ...] | None:
    """The senders and their targets; None if they depend on an unknown number of vCPUs."""
    if driver is not None:
        return routes_of(scenario.pattern, driver.targets(scenario))
    if scenario.pattern in {Pattern.UNICAST, Pattern.SELF}:
        return routes_of(scenario.pattern, (SENDER,))
    if n_vcpus is None:
        return None
    return routes_of(scenario.pattern, range(scenario.pattern == Pattern.BROADCAST, n_vcpus))


def _limits_words(limits: RunLimits | None) -> str:
    if limits is None:
        return "none"
    rate_hz, time_s = limits.max_rate_hz, limits.max_time_s
    rate = "any rate" if rate_hz is None else f"at most {rate_hz:g} sends per second"
    time = "any duration" if time_s is None else f"at most {time_s:g} s of storms"
    default = " (defaults for a guest that ipitrace did not start)" if limits.by_default else ""
    return f"{rate}, {time}{default}"


def _attaching(request: RunRequest, guest: PreviewedGuest) -> Attaching:
    if not _traced(request, guest):
        why = "--no-trace" if not request.trace else "the guest is not a VM of this host"
        return Attaching(why, {}, {}, "")
    planned = plan_for_this_kernel(chosen_events(None), mount=False)
    programs = {probe.event.name: str(probe.hook) for probe in planned.probes}
    return Attaching(None, programs, planned.left_out, _LOADING)


def _inside(
    request: RunRequest, guest: PreviewedGuest, way: str | None, scenarios: Sequence[Scenario]
) -> Iterator[str]:
    if guest.kind == MICRO:
        yield "a VM, made with /dev/kvm in this process: one thread for each vCPU, and the payload"
        if any(s.target_state == TargetState.PREEMPTED for s in scenarios):
            yield "a process with real-time priority that preempts the target on the target's CPU"
        if any(s.target_state in OVERCOMMITTED for s in scenarios):
            yield "threads that spin, two on each of their CPUs, in the scenarios with overcommit"
        return
    if (way or "").startswith("qga"):
        yield "mktemp -d /tmp/ipitrace.XXXXXXXXXX, for the output of programs; removed at the end"
    yield f"PATH={INSTALLED}:$PATH; command -v {HELPER}"
    yield (
        f"{HELPER} status; the helper must have this version, and the kernel module {MODULE} must "
        "be loaded"
    )
    yield f"cat /proc/cpuinfo, and {SNP_GUEST} if the guest may have Secure TSC"
    for s in scenarios:
        yield (
            f"{HELPER} run --pattern {s.pattern} --state {s.target_state} --method "
            f"{s.send_method} ..., for each storm of {s.name}, if the guest can run it"
        )
    yield "the run loads and installs nothing there; 'ipitrace guest install' does"
    if _traced(request, guest):
        yield "on the host, the vCPUs' TSC offsets are read from debugfs"


def _writing(directory: Path) -> str:
    there = directory.exists() and any(directory.iterdir()) if directory.is_dir() else False
    replaced = "; the files there must be a recording, which is replaced only with --force"
    return (
        f"{directory.absolute()}: run.json, SHA256SUMS and Parquet tables, written first to "
        f".{directory.name}.partial-PID beside it{replaced if there else ''}"
    )


def _rights(request: RunRequest, guest: PreviewedGuest, way: str | None) -> Iterator[Right]:
    if guest.kind == MICRO:
        yield _right("read and write /dev/kvm", require_kvm)
    if _traced(request, guest):
        what = "CAP_BPF and CAP_PERFMON (or root), outside of user and pid namespaces"
        yield _right(what, require_trace_privilege, require_initial_pid_namespace)
    if way is not None and way.startswith("ssh:"):
        yield Right(f"a key for {way} (not checked)", None)
    elif way == LOCAL:
        yield Right("root", None if os.geteuid() == 0 else "it runs as another user")
    elif way is not None:
        yield Right(f"the guest agent's channel {way} (not checked)", None)


def _right(what: str, *checks: Any) -> Right:  # noqa: ANN401 - functions that raise
    try:
        for check in checks:
            check()
    except HostError as error:
        return Right(what, error.message)
    return Right(what, None)
