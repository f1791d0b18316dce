# SPDX-License-Identifier: Apache-2.0
"""What a run would attach, send, load and write. Nothing of that is done here.

ipitrace does not connect to the guest, since every transport leaves traces in it.
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
from ipitrace.measure.request import WARMUP, RunRequest
from ipitrace.recording.result import RunLimits
from ipitrace.storm.linux.helper import HELPER, INSTALLED, MODULE
from ipitrace.storm.transport.registry import LOCAL
from ipitrace.tracer.attaching import chosen_events, plan_for_this_kernel
from ipitrace.words.scenarios import Pattern, Scenario, TargetState

_LOADING: Final = (
    "the kernel accepts or refuses each of them only when it is loaded; refused ones are left out "
    "and reported"
)


@dataclass(frozen=True)
class PreviewedGuest:
    """The guest that would be measured; `threads` are those of its vCPUs, if they exist already."""

    kind: str
    what: str
    pid: int | None
    n_vcpus: int | None
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Attaching:
    """BPF programs: event to its hook, and left-out event to the reason."""

    why_nothing: str | None
    programs: Mapping[str, str]
    left_out: Mapping[str, str]
    only_when_loaded: str


@dataclass(frozen=True)
class PreviewedStorms:
    """One scenario's storms.

    Attributes:
        targets: the number of vCPUs that each send is for; None where that is not known.
        sends: of all storms, warm-up included.
        most_per_s: sends per second, if the IPIs themselves took no time.
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
    """Something that this process must be allowed to do; `lacking` is why it is not."""

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
    """What the run would do, as far as this host alone shows it.

    Raises:
        UsageError: no such guest, or the request cannot be carried out.
        HostError: KVM is missing for the built-in guest.
    """
    unsupported: dict[str, str] = {}
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
    )
    return Preview(
        guest=guest,
        attaching=_attaching(request, guest),
        sending=_sending(plan, guest.n_vcpus, unsupported),
        inside=tuple(_inside(request, guest, via, plan.scenarios)),
        writing=_writing(directory),
        rights=tuple(_rights(request, guest, via)),
    )


def _sending(plan: Plan, n_vcpus: int | None, unsupported: Mapping[str, str]) -> Sending:
    repetitions, n_modes = len(plan.sends), len(plan.modes)
    storms = [
        PreviewedStorms(
            name=scenario.name,
            targets=_targets(scenario, n_vcpus),
            repetitions=repetitions,
            sends=n_modes * (sum(plan.sends) + WARMUP * repetitions),
            pace_cycles=plan.paces[scenario.name],
            most_per_s=plan.tsc_hz / max(plan.paces[scenario.name], 1),
        )
        for scenario in plan.scenarios
    ]
    return Sending(
        storms=n_modes * repetitions * len(storms),
        sends=sum(storm.sends for storm in storms),
        least_seconds=least_seconds(plan.storms(), plan.tsc_hz),
        modes=plan.modes,
        scenarios=tuple(storms),
        unsupported=unsupported,
        limits=_limits_words(plan.limits),
    )


def _micro(n_vcpus: int, cpus: Iterable[int] | None) -> PreviewedGuest:
    where = "not pinned" if cpus is None else f"pinned to CPUs {', '.join(map(str, cpus))}"
    what = f"the built-in one, {n_vcpus} vCPUs, {where}: a fresh VM for each storm"
    return PreviewedGuest(MICRO, what, os.getpid(), n_vcpus, ())


def _foreign(name: str, foreign: Foreign) -> PreviewedGuest:
    machine, way = foreign.machine, foreign.way.url
    if machine is None:
        return PreviewedGuest("linux", f"{name}, no VM of this host, by {way}", None, None, ())
    what = f"{machine.name} ({machine.vmm}), {len(machine.vcpus)} vCPUs, by {way}"
    what = "; odd: ".join([what, *foreign.odd])
    return PreviewedGuest("linux", what, machine.pid, len(machine.vcpus), machine.tids)


def _traced(request: RunRequest, guest: PreviewedGuest) -> bool:
    return request.trace and guest.pid is not None


def _targets(scenario: Scenario, n_vcpus: int | None) -> int | None:
    if scenario.pattern in {Pattern.UNICAST, Pattern.SELF}:
        return 1
    return None if n_vcpus is None else n_vcpus - 1


def _limits_words(limits: RunLimits | None) -> str:
    if limits is None:
        return "none"
    rate = "any rate" if limits.max_rate_hz is None else f"{limits.max_rate_hz:g} sends a second"
    time = "any time" if limits.max_time_s is None else f"{limits.max_time_s:g} s of storms"
    default = " (defaults for a guest that is not ours)" if limits.by_default else ""
    return f"{rate}, {time}{default}"


def _attaching(request: RunRequest, guest: PreviewedGuest) -> Attaching:
    if not _traced(request, guest):
        why = "--no-trace" if not request.trace else "the guest is no VM of this host"
        return Attaching(why, {}, {}, "")
    planned = plan_for_this_kernel(chosen_events(None), mount=False)
    programs = {probe.event.name: str(probe.hook) for probe in planned.probes}
    return Attaching(None, programs, planned.left_out, _LOADING)


def _inside(
    request: RunRequest, guest: PreviewedGuest, way: str | None, scenarios: Sequence[Scenario]
) -> Iterator[str]:
    if guest.kind == MICRO:
        yield "a VM by /dev/kvm in this process, one thread for each vCPU, and its payload"
        if any(s.target_state == TargetState.PREEMPTED for s in scenarios):
            yield "a process of real-time priority on the target's CPU, while it is kept preempted"
        return
    if (way or "").startswith("qga"):
        yield "mktemp -d /tmp/ipitrace.XXXXXXXXXX, for what programs print; removed at the end"
    yield f"PATH={INSTALLED}:$PATH; command -v {HELPER}"
    yield f"{HELPER} status; it must be of this version, and the kernel module {MODULE} loaded"
    yield "cat /proc/cpuinfo"
    for s in scenarios:
        yield (
            f"{HELPER} run --pattern {s.pattern} --state {s.target_state} --method "
            f"{s.send_method} ..., for each of its storms, if the guest can"
        )
    yield "nothing is loaded or installed: see 'ipitrace guest install'"
    if _traced(request, guest):
        yield "on the host, debugfs is read for the vCPUs' TSC offsets"


def _writing(directory: Path) -> str:
    there = directory.exists() and any(directory.iterdir()) if directory.is_dir() else False
    replaced = "; what is there must be a recording, and is replaced only with --force"
    return (
        f"{directory.absolute()}: run.json, SHA256SUMS and Parquet tables, first as "
        f".{directory.name}.partial-PID beside it{replaced if there else ''}"
    )


def _rights(request: RunRequest, guest: PreviewedGuest, way: str | None) -> Iterator[Right]:
    if guest.kind == MICRO:
        yield _right("/dev/kvm, to read and write", require_kvm)
    if _traced(request, guest):
        what = "CAP_BPF and CAP_PERFMON (or root), outside of user and pid namespaces"
        yield _right(what, require_trace_privilege, require_initial_pid_namespace)
    if way is not None and way.startswith("ssh:"):
        yield Right(f"a key for {way} (not tried)", None)
    elif way == LOCAL:
        yield Right("root", None if os.geteuid() == 0 else "it is another user")
    elif way is not None:
        yield Right(f"the guest agent's channel {way} (not tried)", None)


def _right(what: str, *checks: Any) -> Right:  # noqa: ANN401 - functions that raise
    try:
        for check in checks:
            check()
    except HostError as error:
        return Right(what, error.message)
    return Right(what, None)
