# SPDX-License-Identifier: Apache-2.0
"""A recording's tables, back as what the correlator was given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recordings import read_table

from ipitrace.correlate.trace import StormTrace
from ipitrace.layout import HOST_EVENT, Kind
from ipitrace.recording_reader import read_run
from ipitrace.result import RunResult
from ipitrace.storm.abi import RECEIPT, SEND
from ipitrace.storm.micro.image import MG_VECTOR_SELF, MG_VECTOR_TARGET

_KINDS = {kind.name.lower(): kind for kind in Kind}


def recorded_traces(recording: Path) -> Iterator[tuple[str, int, StormTrace]]:
    """Scenario, repetition and trace of each recorded storm; of two vCPUs, so one target."""
    run = read_run(recording)
    ipis = _columns(recording, "guest_ipis", [("mode", "==", "full")])
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
        cpus=run.guest["pinned_cpus"],
        complete=True,
        exits_fire=bool((records["kind"] == Kind.KVM_EXIT).any()),
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
