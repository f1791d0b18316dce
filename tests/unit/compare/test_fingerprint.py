# SPDX-License-Identifier: Apache-2.0
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
from comparisons import exits_of, run_of, steady
from runs import made_host

from ipitrace.base.errors import ExitCode, HostError, IpitraceError, MeasurementError, UsageError
from ipitrace.base.loading import keys_of
from ipitrace.compare.fingerprint import ITEMS, check_allowed, check_comparable
from ipitrace.compare.model import FingerprintDifference
from ipitrace.recording.host import HostFingerprint, PinningResult
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ExitsPerIpi


def compared(
    base: RunResult, patched: RunResult, allow: Collection[str]
) -> tuple[FingerprintDifference, ...]:
    return check_comparable(("base", base), ("patched", patched), allow)


def host(**fingerprint: Any) -> RunResult:
    return replace(steady(), host=made_host(**fingerprint))


def refusal(base: RunResult, patched: RunResult, *allow: str) -> IpitraceError:
    with pytest.raises(IpitraceError) as caught:
        compared(base, patched, allow)
    return caught.value


def test_every_item_of_the_hosts_fingerprint_is_on_the_list_once() -> None:
    keys = [item.key for item in ITEMS]
    assert len(set(keys)) == len(keys)
    names = set(keys_of(HostFingerprint))
    assert names <= set(keys) | {"kvm_parameters"}


@pytest.mark.parametrize(
    ("key", "one", "other", "told"),
    [
        ("cpu_model", "a", "b", "a -> b"),
        ("microcode", "0x1", None, "0x1 -> none"),
        ("governor", "performance", "powersave", "performance -> powersave"),
        ("turbo", True, False, "yes -> no"),
        ("emulated", None, "QEMU TCG", "none -> QEMU TCG"),
    ],
)
def test_another_machine_is_refused_by_name_unless_allowed(
    key: str, one: Any, other: Any, told: str
) -> None:
    base, patched = host(**{key: one}), host(**{key: other})
    error = refusal(base, patched)
    assert error.exit_code == ExitCode.ENVIRONMENT
    assert f"{key} ({told})" in error.message
    assert f"--allow {key}" in error.hint
    (difference,) = compared(base, patched, [key])
    assert (difference.key, difference.accepted) == (key, "--allow")


def test_all_mismatches_are_named_at_once() -> None:
    error = refusal(host(smt="on", turbo=True), host(smt="off", turbo=False), "smt")
    assert "smt" not in error.message
    assert "turbo" in error.message
    error = refusal(host(smt="on", turbo=True), host(smt="off", turbo=False))
    assert "--allow smt --allow turbo" in error.hint


def test_where_the_guests_cpus_lie_must_match() -> None:
    def lying(why: str) -> RunResult:
        run = steady()
        pinning = PinningResult(overcommitted=False, why=why)
        return replace(run, host=replace(run.host, pinning=pinning))

    error = refusal(lying("one last-level cache"), lying("2 NUMA nodes"))
    assert "placement (one last-level cache -> 2 NUMA nodes)" in error.message


@pytest.mark.parametrize(
    "key", ["microcode", "kernel_release", "untrustworthy", "self.pace_cycles", "a=b.exits.source"]
)
def test_whatever_a_refusal_names_can_be_allowed(key: str) -> None:
    check_allowed([key])


@pytest.mark.parametrize("key", ["microcod", "", "self", "self.speed", "pace_cycles"])
def test_what_no_refusal_names_cannot_be_allowed(key: str) -> None:
    with pytest.raises(UsageError, match="no key") as raised:
        check_allowed(["smt", key])
    assert "microcode" in raised.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"fingerprint": "a host"},
        {"fingerprint": {"mitigations": ["none"]}},
        {"fingerprint": {"kvm_parameters": "Y"}},
        {"neighbours": 5},
        {"neighbours": {"kvm_processes": 5}},
        {"pinning": [1]},
        {"pinning": {}},
    ],
    ids=str,
)
def test_a_fingerprint_of_another_form_is_no_run(wrong: dict[str, Any]) -> None:
    plain = steady().to_dict()
    with pytest.raises(ValueError, match=r"host\.\w+"):
        RunResult.from_dict({**plain, "host": {**plain["host"], **wrong}})


def test_arrays_are_shown_as_lists() -> None:
    base, patched = (host(tsc_flags=flags) for flags in (["a", "b"], ["a"]))
    assert "tsc_flags (a, b -> a)" in refusal(base, patched).message


def test_another_kernel_is_what_it_is_about() -> None:
    base = host(kernel_release="6.1", kvm_parameters={"kvm_intel.enable_apicv": "Y", "kvm.x": "1"})
    patched = host(
        kernel_release="6.2", kvm_parameters={"kvm_intel.enable_apicv": "N", "kvm.x": "1"}
    )
    found = {d.key: (d.base, d.patched) for d in compared(base, patched, ())}
    assert found == {
        "kernel_release": ("6.1", "6.2"),
        "kvm_parameters": ({"kvm_intel.enable_apicv": "Y"}, {"kvm_intel.enable_apicv": "N"}),
    }


def test_halt_polling_must_match() -> None:
    base, patched = (host(kvm_parameters={"kvm.halt_poll_ns": v}) for v in ("0", "200000"))
    assert "kvm_tunables (kvm.halt_poll_ns: 0 -> 200000)" in refusal(base, patched).message


def test_a_vulnerability_only_one_kernel_knows_of_does_not_matter_where_there_is_none() -> None:
    base = host(mitigations={"l1tf": "Mitigation: PTE Inversion"})
    knows = {"l1tf": "Mitigation: PTE Inversion", "vmscape": "Not affected"}
    assert compared(base, host(mitigations=knows), ()) == ()
    assert "mitigations" in refusal(base, host(mitigations={"l1tf": "Vulnerable"})).message


def test_other_scenarios_are_refused_whatever_is_allowed() -> None:
    other = run_of(replace(steady().scenarios[0], name="self"))
    error = refusal(steady(), other, "scenarios", "self")
    assert error.exit_code == ExitCode.ENVIRONMENT
    assert "base lacks self" in error.message
    assert "patched lacks unicast-running" in error.message


@pytest.mark.parametrize("what", ["pace_cycles", "warmup", "targets"])
def test_other_conditions_are_refused(what: str) -> None:
    row = replace(steady().scenarios[0], **{what: 999})
    assert f"unicast-running.{what}" in refusal(steady(), run_of(row)).message


def test_shorter_storms_are_refused() -> None:
    (row,) = steady().scenarios
    shorter = tuple(replace(f, sent=500) for f in row.repetition_figures)
    other = run_of(replace(row, repetition_figures=shorter))
    assert "sends_per_repetition (1000 -> 500)" in refusal(steady(), other).message


def test_a_passthrough_that_exits_is_refused() -> None:
    (row,) = steady().scenarios

    def passing(exits: float) -> RunResult:
        return run_of(replace(row, send_method="passthrough", exits=exits_of(exits)))

    assert compared(passing(0.0), passing(0.01), ()) == ()
    uncounted = run_of(replace(row, send_method="passthrough", exits=ExitsPerIpi(None, None, None)))
    assert "sender's exits were not counted" in refusal(uncounted, passing(0.0)).message
    error = refusal(passing(0.0), passing(1.0))
    assert isinstance(error, HostError)
    assert "patched should pass interrupts through" in error.message
    assert "1.00 exits per IPI" in error.message


def test_the_host_s_own_interrupts_do_not_speak_against_a_passthrough() -> None:
    (row,) = steady().scenarios

    def with_exits(by_reason: Mapping[str, float]) -> RunResult:
        exits = ExitsPerIpi("kvm_exit", by_reason, {"exits": 0.0})
        return run_of(replace(row, send_method="passthrough", exits=exits))

    seldom = with_exits({"exits": 0.47, "EXTERNAL_INTERRUPT": 0.45, "IO_INSTRUCTION": 0.02})
    assert compared(seldom, seldom, ()) == ()
    mixed = with_exits({"exits": 0.55, "EXTERNAL_INTERRUPT": 0.45, "MSR_WRITE": 0.1})
    assert "0.10 exits per IPI" in refusal(seldom, mixed).message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"complete": False, "failure": "Interrupted."}, "incomplete"),
        ({"untrustworthy": ("events were lost",)}, "untrustworthy"),
    ],
)
def test_a_run_that_cannot_be_trusted_is_not_compared(changes: dict[str, Any], key: str) -> None:
    patched = replace(steady(), **changes)
    error = refusal(steady(), patched)
    assert isinstance(error, MeasurementError)
    assert f"--allow {key}" in error.hint
    (difference,) = compared(steady(), patched, [key])
    assert (difference.key, difference.accepted) == (key, "--allow")


def test_a_recording_without_repetitions_is_refused() -> None:
    old = run_of(replace(steady().scenarios[0], repetition_figures=()))
    assert "older ipitrace" in refusal(old, steady()).message
