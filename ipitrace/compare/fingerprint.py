# SPDX-License-Identifier: Apache-2.0
"""Items that must be the same on both sides of a comparison, and items that may differ."""

import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipitrace.base.errors import HostError, MeasurementError, UsageError
from ipitrace.compare.model import FingerprintDifference
from ipitrace.compare.wording import tell_difference
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.words.metrics import TOTAL_EXITS
from ipitrace.words.scenarios import PROVING, ScenarioStatus, SendMethod

MOST_PASSTHROUGH_EXITS = 0.05
"""With more sender exits per IPI, a passthrough scenario did not pass interrupts through."""

_HOSTS_OWN: Final = ("EXTERNAL_INTERRUPT", "interrupt", "irq_exits")
"""Exits that no send causes, by their names in VMX, SVM and KVM's statistics. If IPIs are far
apart, the host's timer interrupts in between."""

_SHORT: Final = 60  # characters of a value in an error
_NAMED: Final = 3  # keys of a mapping in an error

Read = Callable[[RunResult], Any]
Named = tuple[str, RunResult]
"""The user's name of a run, and the run."""


@dataclass(frozen=True)
class Item:
    """One item that is checked.

    Attributes:
        must_match: False if the item may be the subject of a comparison.
    """

    key: str
    must_match: bool
    read: Read


def _fingerprint(key: str) -> Read:
    return lambda run: _plain(getattr(run.host.fingerprint, key, None))


def _guest(key: str) -> Read:
    return lambda run: _plain(getattr(run.guest, key))


def _plain(value: object) -> object:
    """As run.json has it; a comparison's text shows arrays in brackets."""
    return list(value) if isinstance(value, tuple) else value


def _parameters(*, tunables: bool) -> Read:
    """KVM's parameters without those of _TUNABLES, or only those."""

    def read(run: RunResult) -> dict[str, str]:
        found = (run.host.fingerprint and run.host.fingerprint.kvm_parameters) or {}
        return {
            name: value
            for name, value in found.items()
            if (name.partition(".")[2].startswith(_TUNABLES)) == tunables
        }

    return read


def _known_mitigations(run: RunResult) -> dict[str, str]:
    """Mitigations, without "Not affected", which equals a name that the kernel does not know."""
    found = (run.host.fingerprint and run.host.fingerprint.mitigations) or {}
    return {name: state for name, state in found.items() if state != "Not affected"}


def _tsc_mhz(run: RunResult) -> float | None:
    khz = run.clock.kvm_tsc_khz
    return None if khz is None else round(khz / 1000)


def _other_vms(run: RunResult) -> int:
    around = run.host.neighbours
    return len((around and around.kvm_processes) or ())


def _other_tracers(run: RunResult) -> int | None:
    return None if run.host.neighbours is None else run.host.neighbours.bpf_tracing_programs


# Parameters that set how long a host polls or waits. They change all figures of a halted target.
_TUNABLES: Final = ("halt_poll_ns", "lapic_timer_advance", "ple_")

# Kernels are what is compared: release, known vulnerabilities and parameters may differ. The
# machine, its speed and the measured workload must not.
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
    Item("overcommitted", must_match=True, read=lambda r: r.host.pinning.overcommitted),
    # cores, caches and NUMA nodes of the guest's CPUs, in words
    Item("placement", must_match=True, read=lambda r: r.host.pinning.why),
    Item("other_vms", must_match=True, read=_other_vms),
    Item("tsc_mhz", must_match=True, read=_tsc_mhz),
    Item("guest.kind", must_match=True, read=_guest("kind")),
    Item("guest.n_vcpus", must_match=True, read=_guest("n_vcpus")),
    Item("guest.pinned_cpus", must_match=True, read=_guest("pinned_cpus")),
    Item("guest.payload", must_match=True, read=_guest("payload_sha256")),
    *(
        Item(f"guest.{key}", must_match=True, read=_guest(key))
        for key in ("kernel", "emulated", "apic_mode", "module_srcversion")
    ),
    Item("guest.via", must_match=False, read=_guest("via")),
    Item("ipitrace_version", must_match=True, read=lambda run: run.ipitrace_version),
    Item("other_tracers", must_match=False, read=_other_tracers),
    *(
        Item(key, must_match=False, read=_fingerprint(key))
        for key in ("kernel_release", "kernel_version", "kernel_cmdline", "memory_bytes")
    ),
    Item("kvm_parameters", must_match=False, read=_parameters(tunables=False)),
)

# Possible subjects of a comparison; within one side they must be the same.
_COMPARED: Final = ("kernel_release", "kernel_version", "kernel_cmdline", "kvm_parameters")

# States that make a run doubtful; a doubtful run is compared only if --allow names the state.
_DOUBTS: Final = ("incomplete", "untrustworthy")

# Conditions of each scenario, by their names in run.json.
_CONDITIONS: Final = ("targets", "pace_cycles", "warmup", "send_method", "target_state", "pattern")
_SENDS: Final = "sends_per_repetition"
_SOURCE: Final = "exits.source"
_TRACED: Final = "traced"


def check_allowed(keys: Collection[str]) -> None:
    """Check that every key of --allow is one that a refusal can name.

    Raises:
        UsageError: a key is unknown.
    """
    known = [*(item.key for item in ITEMS), *_DOUBTS]
    of_scenarios = (*_CONDITIONS, _SOURCE, _TRACED, _SENDS)
    for key in keys:
        if key not in known and not key.endswith(tuple(f".{name}" for name in of_scenarios)):
            raise UsageError(
                f"There is no key {key[:60]!r} to allow.",
                f"Known: {', '.join(known)}; and SCENARIO. with {', '.join(of_scenarios)}.",
            )


def check_comparable(
    base: Named, patched: Named, allow: Collection[str]
) -> tuple[FingerprintDifference, ...]:
    """Check that two runs may be compared, and return their accepted differences.

    Args:
        base: one run, with the user's name of it.
        patched: the other one.
        allow: keys that may differ although they must match.

    Raises:
        MeasurementError: one of the runs is incomplete or not trustworthy.
        HostError: an item that must match differs, or the scenarios are not the same.
    """
    for name, run in (base, patched):
        _check_sound(run, name, allow)
    _check_scenarios(base, patched)
    found = list(_differences(base, patched))
    _refuse([d for d in found if not d.accepted and d.key not in allow], base, patched)
    return tuple(
        d if d.accepted else FingerprintDifference(d.key, d.base, d.patched, "--allow")
        for d in found
    )


def check_side(runs: Sequence[Named], allow: Collection[str]) -> None:
    """Check that the recordings of one side have one configuration.

    Raises:
        MeasurementError: one of them is incomplete or not trustworthy.
        HostError: two of them differ in an item that must match, or in one that may differ
            only between sides.
    """
    for run in runs[1:]:
        found = check_comparable(runs[0], run, allow)
        _refuse([d for d in found if d.key in _COMPARED and d.key not in allow], runs[0], run)


def _refuse(barred: Sequence[FingerprintDifference], base: Named, patched: Named) -> None:
    if not barred:
        return
    items = "; ".join(f"{d.key} ({_short(d)})" for d in barred)
    raise HostError(
        f"The runs {base[0]} and {patched[0]} are not comparable. Different: {items}.",
        "Measure both under the same conditions, or accept the difference with "
        + " ".join(f"--allow {d.key}" for d in barred)
        + ".",
    )


def _check_sound(run: RunResult, name: str, allow: Collection[str]) -> None:
    if not run.complete and "incomplete" not in allow:
        raise MeasurementError(
            f"The run {name} is partial: {run.failure}", "Measure again, or use --allow incomplete."
        )
    if run.untrustworthy and "untrustworthy" not in allow:
        raise MeasurementError(
            f"The run {name} is not trustworthy: {'; '.join(run.untrustworthy)}.",
            "Measure again on a quieter host, or use --allow untrustworthy.",
        )
    for row in _measured(run).values():
        if not row.repetition_figures:
            raise HostError(
                f"The run {name} has no figures of single repetitions. An older ipitrace wrote it.",
                "Measure again with this version.",
            )
        if row.send_method == SendMethod.PASSTHROUGH:
            _check_passthrough(row, name)


def _check_passthrough(row: ScenarioResult, name: str) -> None:
    """Check that sender exits were counted, and that there were none: the proof of the path."""
    exits = row.exits.sender if row.exits and row.exits.source else None
    if exits is None:
        raise HostError(
            f"The scenario {row.name} of {name} should pass interrupts through, but the "
            "sender's exits were not counted.",
            "Measure with tracing, or on a kernel whose KVM keeps statistics (5.14 or newer).",
        )
    per_ipi = exits.get(TOTAL_EXITS, 0.0) - sum(exits.get(reason, 0.0) for reason in _HOSTS_OWN)
    if per_ipi > MOST_PASSTHROUGH_EXITS:
        raise HostError(
            f"The scenario {row.name} of {name} should pass interrupts through, but the "
            f"sender took {per_ipi:.2f} exits per IPI, without those for the host's interrupts.",
            "Check that the host and the guest both support passthrough, and measure again: "
            "host events prove the path, not the scenario's name.",
        )


def _check_scenarios(base: Named, patched: Named) -> None:
    ours, theirs = _measured(base[1]), _measured(patched[1])
    lacking = [
        f"{name} lacks {', '.join(missing)}"
        for name, missing in (
            (base[0], sorted(theirs.keys() - ours.keys())),
            (patched[0], sorted(ours.keys() - theirs.keys())),
        )
        if missing
    ]
    if lacking or not ours:
        raise HostError(
            f"The runs have different scenarios: {'; '.join(lacking) or 'none was measured'}.",
            "Measure the same scenarios, or select one that both runs have with --scenario. "
            "'ipitrace compare --pair A=B' compares two different scenarios.",
        )


def _differences(ours: Named, others: Named) -> Iterator[FingerprintDifference]:
    """All differences; `accepted` is empty if the item must match."""
    base, patched = ours[1], others[1]
    if base.failure or patched.failure:
        yield FingerprintDifference("incomplete", base.failure, patched.failure, "--allow")
    if base.untrustworthy or patched.untrustworthy:
        doubts = (list(base.untrustworthy), list(patched.untrustworthy))
        yield FingerprintDifference("untrustworthy", *doubts, "--allow")
    for item in ITEMS:
        one, other = item.read(base), item.read(patched)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                one, other = _apart(one, other)
            yield FingerprintDifference(
                item.key, one, other, "" if item.must_match else "may differ"
            )
    theirs = _measured(patched)
    for name, row in _measured(base).items():
        one, other = _conditions(row), _conditions(theirs[name])
        for key in one:
            if one[key] != other[key]:
                yield FingerprintDifference(f"{name}.{key}", one[key], other[key], "")
        sends = [max(f.sent for f in r.repetition_figures) for r in (row, theirs[name])]
        if abs(sends[0] - sends[1]) > 1:  # the first repetitions get the remainder
            yield FingerprintDifference(f"{name}.{_SENDS}", sends[0], sends[1], "")


def _conditions(row: ScenarioResult) -> dict[str, Any]:
    """Items that must be equal. Exits are counted while tracing, or without it if none was used."""
    return {
        **{key: getattr(row, key) for key in _CONDITIONS},
        _SOURCE: row.exits.source if row.exits else None,
        _TRACED: any(f.mode in PROVING for f in row.repetition_figures),
    }


def _apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two dictionaries without their equal items."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {k: one.get(k) for k in keys}, {k: other.get(k) for k in keys}


def _measured(run: RunResult) -> dict[str, ScenarioResult]:
    return {row.name: row for row in run.scenarios if row.status == ScenarioStatus.MEASURED}


def _short(difference: FingerprintDifference) -> str:
    """How an item differs, in a few words."""
    told = [
        ("" if key == difference.key else f"{key}: ") + f"{_cut(base)} -> {_cut(patched)}"
        for key, base, patched in tell_difference(difference)
    ]
    more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return ", ".join(told[:_NAMED]) + more


def _cut(value: str) -> str:
    return textwrap.shorten(value, _SHORT, placeholder=" ...")
