# SPDX-License-Identifier: Apache-2.0
"""What must be the same on both sides of a comparison, and what may differ: one list."""

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipitrace.compare.model import Difference
from ipitrace.errors import HostError, MeasurementError
from ipitrace.model import SendMethod
from ipitrace.result import RunResult, ScenarioResult

MOST_PASSTHROUGH_EXITS = 0.05
"""Sender exits per IPI above which a passthrough scenario did not pass the interrupts through."""

_SHORT: Final = 60  # characters of a value in an error

Read = Callable[[RunResult], Any]


@dataclass(frozen=True)
class Item:
    """One item that is looked at.

    Attributes:
        must_match: False for what a comparison may be about.
    """

    key: str
    must_match: bool
    read: Read


def _fingerprint(key: str) -> Read:
    return lambda run: (run.host.get("fingerprint") or {}).get(key)


def _parameters(*, tunables: bool) -> Read:
    """KVM's parameters but those of _TUNABLES, or those alone."""
    return lambda run: {
        name: value
        for name, value in ((run.host.get("fingerprint") or {}).get("kvm_parameters") or {}).items()
        if (name.partition(".")[2].startswith(_TUNABLES)) == tunables
    }


def _known_mitigations(run: RunResult) -> dict[str, str]:
    """Those that cost something; "Not affected" is as good as a name the kernel does not know."""
    found: Mapping[str, str] = (run.host.get("fingerprint") or {}).get("mitigations") or {}
    return {name: state for name, state in found.items() if state != "Not affected"}


def _tsc_mhz(run: RunResult) -> float | None:
    khz = run.clock.kvm_tsc_khz
    return None if khz is None else round(khz / 1000)


def _other_vms(run: RunResult) -> int:
    return len((run.host.get("neighbours") or {}).get("kvm_processes") or ())


def _other_tracers(run: RunResult) -> Any:  # noqa: ANN401 - as run.json has it
    return (run.host.get("neighbours") or {}).get("bpf_tracing_programs")


# Parameters that set how long a host polls or waits: they move every figure of a halted target.
_TUNABLES: Final = ("halt_poll_ns", "lapic_timer_advance", "ple_")

# A kernel may call itself otherwise, know more vulnerabilities and take other parameters:
# that is what is compared. The machine, its speed and what is measured must stay.
ITEMS: Final[tuple[Item, ...]] = (
    *(
        Item(key, must_match=True, read=_fingerprint(key))
        for key in (
            *("cpu_model", "cpu_vendor", "cpu_signature", "microcode", "cpus_online", "smt"),
            *("kvm_backend", "governor", "turbo", "cpuidle", "clocksource", "tsc_flags"),
            *("x2apic", "virtualised", "emulated", "numa_nodes", "isolated_cpus", "nohz_full_cpus"),
        )
    ),
    Item("mitigations", must_match=True, read=_known_mitigations),
    Item("kvm_tunables", must_match=True, read=_parameters(tunables=True)),
    Item("overcommitted", must_match=True, read=lambda r: r.host["pinning"]["overcommitted"]),
    Item("other_vms", must_match=True, read=_other_vms),
    Item("tsc_mhz", must_match=True, read=_tsc_mhz),
    Item("guest.kind", must_match=True, read=lambda run: run.guest.get("kind")),
    Item("guest.n_vcpus", must_match=True, read=lambda run: run.guest.get("n_vcpus")),
    Item("guest.pinned_cpus", must_match=True, read=lambda run: run.guest.get("pinned_cpus")),
    Item("guest.payload", must_match=True, read=lambda run: run.guest.get("payload_sha256")),
    Item("ipitrace_version", must_match=True, read=lambda run: run.ipitrace_version),
    Item("other_tracers", must_match=False, read=_other_tracers),
    *(
        Item(key, must_match=False, read=_fingerprint(key))
        for key in ("kernel_release", "kernel_version", "kernel_cmdline", "memory_bytes")
    ),
    Item("kvm_parameters", must_match=False, read=_parameters(tunables=False)),
)

# Of each scenario, by the name it has in run.json.
_CONDITIONS: Final = ("targets", "pace_cycles", "warmup", "send_method", "target_state", "pattern")


def check_comparable(
    base: RunResult, patched: RunResult, names: tuple[str, str], allow: Collection[str]
) -> tuple[Difference, ...]:
    """See that two runs may be compared, and answer how they differ nevertheless.

    Args:
        base: one run.
        patched: the other.
        names: what the person calls them.
        allow: keys that may differ although they must match.

    Raises:
        MeasurementError: one of the runs is not to be trusted.
        HostError: what must match does not, or the scenarios are not the same.
    """
    for run, name in zip((base, patched), names, strict=True):
        _check_sound(run, name, allow)
    _check_scenarios(base, patched, names)
    found = list(_differences(base, patched))
    barred = [d.key for d in found if d.accepted == "" and d.key not in allow]
    if barred:
        told = "; ".join(
            f"{d.key} ({_short(d.base)} against {_short(d.patched)})"
            for d in found
            if d.key in barred
        )
        raise HostError(
            f"The runs {names[0]} and {names[1]} are not comparable, since these differ: {told}.",
            "Measure both alike, or accept a difference with "
            + " ".join(f"--allow {key}" for key in barred)
            + ".",
        )
    return tuple(
        d if d.accepted else Difference(d.key, d.base, d.patched, "--allow") for d in found
    )


def _check_sound(run: RunResult, name: str, allow: Collection[str]) -> None:
    if not run.complete and "incomplete" not in allow:
        raise MeasurementError(
            f"The run {name} is partial: {run.failure}", "Measure again, or --allow incomplete."
        )
    if run.untrustworthy and "untrustworthy" not in allow:
        raise MeasurementError(
            f"The run {name} is not trustworthy: {'; '.join(run.untrustworthy)}.",
            "Measure again on a quieter host, or --allow untrustworthy.",
        )
    for row in _measured(run).values():
        if not row.repetition_figures:
            raise HostError(
                f"The run {name} has no figures of single repetitions: an older ipitrace made it.",
                "Measure again with this version.",
            )
        exits = row.exits.sender if row.exits else None
        per_ipi = (exits or {}).get("exits", 0.0)
        if row.send_method == SendMethod.PASSTHROUGH and per_ipi > MOST_PASSTHROUGH_EXITS:
            raise HostError(
                f"The scenario {row.name} of {name} claims to pass interrupts through, but its "
                f"sender took {per_ipi:.2f} exits per IPI.",
                "The path is proved by events, not by the scenario's name: see that the host and "
                "the guest both support it, and measure again.",
            )


def _check_scenarios(base: RunResult, patched: RunResult, names: tuple[str, str]) -> None:
    ours, theirs = _measured(base), _measured(patched)
    lacking = [
        f"{name} lacks {', '.join(missing)}"
        for name, missing in (
            (names[0], sorted(theirs.keys() - ours.keys())),
            (names[1], sorted(ours.keys() - theirs.keys())),
        )
        if missing
    ]
    if lacking or not ours:
        raise HostError(
            f"These are not runs of the same scenarios: {'; '.join(lacking) or 'there are none'}.",
            "Measure the same scenarios, or name one that both have with --scenario.",
        )


def _differences(base: RunResult, patched: RunResult) -> Iterator[Difference]:
    """`accepted` is empty where the item must match."""
    for item in ITEMS:
        one, other = item.read(base), item.read(patched)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                one, other = _apart(one, other)
            yield Difference(item.key, one, other, "" if item.must_match else "may differ")
    theirs = _measured(patched)
    for name, row in _measured(base).items():
        for condition in _CONDITIONS:
            pair = (getattr(row, condition), getattr(theirs[name], condition))
            if pair[0] != pair[1]:
                yield Difference(f"{name}.{condition}", *pair, "")
        sources = [r.exits.source if r.exits else None for r in (row, theirs[name])]
        if sources[0] != sources[1]:
            yield Difference(f"{name}.exits.source", sources[0], sources[1], "")
        sends = [max(f.sent for f in r.repetition_figures) for r in (row, theirs[name])]
        if abs(sends[0] - sends[1]) > 1:  # what is left over goes to the first repetitions
            yield Difference(f"{name}.sends_per_repetition", sends[0], sends[1], "")


def _apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two dictionaries without what they agree on."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {k: one.get(k) for k in keys}, {k: other.get(k) for k in keys}


def _measured(run: RunResult) -> dict[str, ScenarioResult]:
    return {row.name: row for row in run.scenarios if row.status == "measured"}


def _short(value: object) -> str:
    return textwrap.shorten(str(value), _SHORT, placeholder=" ...")
