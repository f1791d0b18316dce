# SPDX-License-Identifier: Apache-2.0
"""Recordings for tests: any value a dataclass can hold, and a storm with known stages."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ipitrace.base.loading import OpenObject, keys_of, load
from ipitrace.recording.guest import GuestResult
from ipitrace.recording.host import HostResult
from ipitrace.recording.result import ClockResult, RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter

_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    NoneType: st.none(),
    Any: st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
        ),
        max_leaves=4,
    ),
}

FILES = (RUN_FILE, CHECKSUM_FILE, "spans.parquet", "host_events.parquet")


def hints_of(cls: Any) -> dict[str, Any]:
    """Type hints of a dataclass's fields, without what an open object keeps of other versions."""
    hints = get_type_hints(cls)
    if issubclass(cls, OpenObject):
        return {name: hints[name] for name in keys_of(cls)}
    return hints


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type hint that loading.load() understands."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return st.one_of(*map(values_of, args))
    if dataclasses.is_dataclass(hint):
        hints = hints_of(hint)
        return st.builds(hint, **{name: values_of(inner) for name, inner in hints.items()})
    if origin is tuple:
        if args[1:] == (...,):
            return st.lists(values_of(args[0]), max_size=2).map(tuple)
        return st.tuples(*map(values_of, args))
    return st.dictionaries(values_of(args[0]), values_of(args[1]), max_size=2)


def plain_value(hint: Any) -> Any:
    """One value of a type hint, the same each time; as little as it allows."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return None if NoneType in args else plain_value(args[0])
    if dataclasses.is_dataclass(hint):
        return hint(**{name: plain_value(inner) for name, inner in hints_of(hint).items()})
    if origin is tuple:
        return () if args[1:] == (...,) else tuple(map(plain_value, args))
    if origin is not None:
        return {}
    return None if hint in {Any, NoneType} else hint()


def empty_run() -> RunResult:
    """A run that found nothing."""
    return dataclasses.replace(plain_value(RunResult), complete=True)


SPAN_MEANINGS = {
    "ipi": "running number",
    "scenario": "its scenario",
    "repetition": "its repetition",
    "seq": "the send's number in the repetition",
    "sender": "vCPU",
    "target": "vCPU",
    "path": "how it travelled",
    "send_tsc": "before the send",
    "ipi_tsc": "KVM takes it on",
    "accept_tsc": "the target's APIC has it",
    "sent_tsc": "after the send",
    "handler_tsc": "the handler's first instruction",
}
EVENT_MEANINGS = {
    "scenario": "its scenario",
    "repetition": "its repetition",
    "ts_ns": "CLOCK_MONOTONIC",
    "tsc": "guest TSC cycles",
    "vcpu": "vCPU",
    "cpu": "host CPU",
    "kind": "tracepoint",
    "arg": "by kind",
    "word": "by kind",
    "detail": "by kind",
}
STEP_TSC = 10_000


def spans(n: int, *, first: int = 0, scenario: str = "unicast", target: int = 1) -> dict[str, Any]:
    """Rows of n IPIs of one repetition; the handler of every third was not seen."""
    send_tsc = 1_000_000 + STEP_TSC * np.arange(n, dtype=np.int64)
    lost = np.arange(n) % 3 == 2
    return {
        "ipi": first + np.arange(n, dtype=np.int64),
        "scenario": np.full(n, scenario),
        "repetition": np.zeros(n, np.int16),
        "seq": np.arange(n, dtype=np.int64),
        "sender": np.zeros(n, np.int16),
        "target": np.full(n, target, np.int16),
        "path": np.array(["exitless", "msr-exit"])[np.arange(n) % 2],
        "send_tsc": send_tsc,
        "ipi_tsc": send_tsc + 300,
        "accept_tsc": send_tsc + 500,
        "sent_tsc": send_tsc + 800,
        "handler_tsc": np.ma.array(send_tsc + 2000, mask=lost),
    }


def events(n: int, *, scenario: str = "unicast") -> dict[str, Any]:
    """Of each IPI above: KVM takes it on, the APIC accepts it, and a bystander's exit."""
    each = 3
    total = n * each
    after_send = np.tile([300, 500, 600], n)
    tsc = 1_000_000 + STEP_TSC * np.repeat(np.arange(n, dtype=np.int64), each) + after_send
    kinds = np.array(["kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_exit"])
    return {
        "scenario": np.full(total, scenario),
        "repetition": np.zeros(total, np.int16),
        "ts_ns": (tsc // 2).astype(np.uint64),
        "tsc": tsc,
        "vcpu": np.tile(np.array([0, 0, 2], np.int16), n),
        "cpu": np.tile(np.array([4, 4, 6], np.int16), n),
        "kind": np.tile(kinds, n),
        "arg": np.tile(np.array([1, 0, 0], np.uint64), n),
        "word": np.tile(np.array([0xEC, 1, 12], np.uint32), n),
        "detail": np.tile(np.array([0, 0xEC, 1], np.uint16), n),
    }


def make_recording(
    directory: Path,
    n: int = 30,
    *,
    run: RunResult | None = None,
    force: bool = False,
    **tables: Mapping[str, Any],
) -> RunResult:
    """A recording of n IPIs, and the run as its readers see it."""
    with RecordingWriter(directory, force=force) as writer:
        writer.append("spans", tables.get("spans", spans(n)), SPAN_MEANINGS)
        writer.append("host_events", tables.get("events", events(n)), EVENT_MEANINGS)
        return writer.finish(empty_run() if run is None else run)


def read_table(directory: Path, name: str, **choice: Any) -> pa.Table:
    """A whole table of a recording that a test trusts."""
    return pq.read_table(directory / f"{name}.parquet", **choice)


def some_run(**changes: Any) -> RunResult:
    """As little as can be printed."""
    row = replace(plain_value(ScenarioResult), name="unicast", status="measured")
    plain = {
        "one_line": "a processor",
        "fingerprint": {},
        "neighbours": {},
        "pinning": {"overcommitted": False, "why": "two cores"},
    }
    host = load(HostResult, plain)
    guest = load(GuestResult, {"kind": "micro", "n_vcpus": 2, "pinned_cpus": [0, 1]})
    clock = replace(plain_value(ClockResult), tsc_hz=2e9)
    run = replace(empty_run(), host=host, guest=guest, clock=clock, scenarios=(row,))
    return replace(run, **changes)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
