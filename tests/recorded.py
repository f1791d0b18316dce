# SPDX-License-Identifier: Apache-2.0
"""A recording's tables, back as what the correlator was given."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recordings import read_table

from ipitrace.abi.events import HOST_EVENT
from ipitrace.abi.storm import ALL_BUT_SELF, RECEIPT, SEND
from ipitrace.correlate.trace import StormTrace
from ipitrace.recording.reader import read_run
from ipitrace.recording.result import RunResult
from ipitrace.storm.driver import Storm, StormRequest
from ipitrace.storm.micro.image import MG_VECTOR_SELF, MG_VECTOR_TARGET
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Mode, select_scenarios

_KINDS = {kind.name.lower(): kind for kind in Kind}


def recorded_traces(
    recording: Path, modes: Collection[str] = ("evidence", "full")
) -> Iterator[tuple[str, int, StormTrace]]:
    """Scenario, repetition and trace of each storm in these modes; of two vCPUs, so one target."""
    run = read_run(recording)
    ipis = _columns(recording, "guest_ipis", [("mode", "in", list(modes))])
    events = _columns(recording, "host_events")
    for repetition in np.unique(ipis["repetition"]):
        own_ipis = _rows(ipis, repetition)
        own_events = _rows(events, repetition)
        scenario = str(own_ipis["scenario"][0])
        yield scenario, int(repetition), _trace(run, scenario, own_ipis, own_events)


def _trace(
    run: RunResult, scenario: str, ipis: dict[str, Any], events: dict[str, Any]
) -> StormTrace:
    (row,) = (s for s in run.scenarios if s.name == scenario)
    assert row.stages is not None
    target = int(ipis["target"][0])
    receipts = [np.zeros(0, RECEIPT), np.zeros(0, RECEIPT)]
    receipts[target] = _records(RECEIPT, ipis, ipis["handler_tsc"] != 0)
    records = _records(HOST_EVENT, {**events, "kind": [_KINDS[k] for k in events["kind"]]})
    return StormTrace(
        sends=_records(SEND, ipis),
        receipts=receipts,
        sender=int(ipis["sender"][0]),
        targets=(target,),
        vector=MG_VECTOR_SELF if row.pattern == "self" else MG_VECTOR_TARGET,
        events=records,
        event_tsc=events["tsc"],
        bound_cycles=row.stages.bound_cycles,
        cpus=run.guest.pinned_cpus,
        complete=True,
        exits_fire=bool((records["kind"] == Kind.KVM_EXIT).any()),
        stages_only=str(ipis["mode"][0]) == Mode.STAGES,
    )


def _columns(recording: Path, table: str, filters: Any = None) -> dict[str, NDArray[Any]]:
    """A table's columns; what is absent is 0, as in the guest's own log."""
    read = read_table(recording, table, filters=filters)
    return {
        name: (column.fill_null(0) if column.null_count else column).to_numpy()
        for name, column in zip(read.column_names, read.columns, strict=True)
    }


def _rows(columns: dict[str, NDArray[Any]], repetition: int) -> dict[str, NDArray[Any]]:
    rows = columns["repetition"] == repetition
    return {name: column[rows] for name, column in columns.items()}


def _records(dtype: np.dtype[Any], columns: dict[str, Any], rows: Any = ...) -> NDArray[np.void]:
    names = [name for name in dtype.names or () if name in columns]
    records = np.zeros(len(columns[names[0]]), dtype)
    for name in names:
        records[name] = columns[name]
    return records[rows]


def recorded_storms(
    recording: Path,
) -> Iterator[tuple[Storm, StormRequest, tuple[int, ...], float]]:
    """Each storm, its request, its targets, and a time that it cannot have exceeded.

    Of two vCPUs, so one target. What the pairing left out, and numbers of handler entries, are
    not recorded.
    """
    run = read_run(recording)
    rows = {row.name: row for row in run.scenarios}
    ipis = _columns(recording, "guest_ipis")
    for repetition in np.unique(ipis["repetition"]):
        own = _rows(ipis, repetition)
        row = rows[str(own["scenario"][0])]
        target, n, warmup = int(own["target"][0]), len(own["seq"]), int(own["seq"][0])
        receipts = [np.zeros(0, RECEIPT), np.zeros(0, RECEIPT)]
        receipts[target] = _records(RECEIPT, own, own["handler_tsc"] != 0)
        receipts[target]["seq"] = np.arange(len(receipts[target]))
        sends = _records(SEND, own)
        if row.pattern == "broadcast":
            sends["target"] = ALL_BUT_SELF
        storm = Storm(
            sends=sends,
            receipts=tuple(receipts),
            handled=tuple(map(len, receipts)),
            incomplete=int(np.count_nonzero(sends["ack_tsc"] == 0)),
            spurious=0,
            start=None,
            end=None,
            tsc_offset=None,
            tsc_khz=run.clock.kvm_tsc_khz,
        )
        (scenario,) = select_scenarios([row.name])
        request = StormRequest(scenario, 2, n, warmup, row.pace_cycles or 0)
        yield storm, request, (target,), run.duration_seconds
