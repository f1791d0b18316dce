# SPDX-License-Identifier: Apache-2.0
"""The true length of each stage, by scenario."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ipitrace.correlate.breakdown import Breakdown, break_down
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT
from ipitrace.recording.reader import read_rows, read_run
from ipitrace.recording.result import RunResult
from ipitrace.words.scenarios import SENDER, Mode
from ipitrace.words.stages import STAGES, Stage
from lab.common.steps import LabError
from lab.truth.stages import Stamp, read_stamps, stages_of

_PLACE = ("scenario", "repetition", "seq", "target")


@dataclass(frozen=True)
class TrueIpi:
    """One IPI.

    Attributes:
        stamps: guest TSC of the stages that it has.
    """

    scenario: str
    repetition: int
    seq: int
    target: int
    stamps: Mapping[Stage, int]


@dataclass(frozen=True)
class Truth:
    """The IPIs that were sent while nothing was attached, and their stages.

    Attributes:
        ipis: in the order of the recording.
        scenarios: name to the breakdown of D, in ticks. Its medians are computed as those of a
            recording's stages; the clock's error bound is 0.
    """

    ipis: Sequence[TrueIpi]
    scenarios: Mapping[str, Breakdown]


def read_truth(recording: Path, stamps: Path, places: Path) -> Truth:
    """The true stages of a recording's IPIs, of those that were not traced.

    Args:
        recording: made in the emulated host, by the built-in guest.
        stamps: the emulator's, of the same boot.
        places: written by inside.py in the same boot.

    Raises:
        LabError: they do not fit together.
        UsageError: the recording cannot be read.
    """
    run = read_run(recording)
    offset, cpus = _offset(run), run.guest.pinned_cpus
    if cpus is None:
        raise LabError(f"the guest of {recording} was not pinned")
    names = {place["number"]: place["name"] for place in json.loads(places.read_text())}
    on_guest = [Stamp(s.tsc + offset, s.cpu, s.name) for s in read_stamps(stamps, names)]
    rows = read_rows(recording, run, "guest_ipis", equal={"mode": Mode.OFF})
    ipis = list(_true_ipis(rows, on_guest, cpus))
    parts = {
        row.name: break_down([_spans([ipi for ipi in ipis if ipi.scenario == row.name])], 0)
        for row in run.scenarios
    }
    return Truth(ipis, {name: part for name, part in parts.items() if part is not None})


def write_truth(truth: Truth, directory: Path) -> None:
    """Write truth.json, the medians, and truth.parquet, every IPI.

    truth.parquet has the columns of spans.parquet that identify an IPI, and the same
    `<stage>_tsc`.
    """
    scenarios = {name: _as_json(part) for name, part in truth.scenarios.items()}
    text = json.dumps({"unit": "ticks", "scenarios": scenarios}, indent=1)
    (directory / "truth.json").write_text(text + "\n")
    place = {name: [getattr(ipi, name) for ipi in truth.ipis] for name in _PLACE}
    stamps = {
        f"{spec.name}_tsc": pa.array([i.stamps.get(spec.stage) for i in truth.ipis], pa.int64())
        for spec in STAGES
    }
    pq.write_table(pa.table(place | stamps), directory / "truth.parquet")


def _as_json(part: Breakdown) -> dict[str, Any]:
    """As the key `stages` of run.json has it."""
    names = {spec.stage: spec.name for spec in STAGES}
    return {
        "ipis": part.spans,
        "sequences": [
            {"stages": [names[stage] for stage in s.stages], "ipis": s.spans}
            for s in part.sequences
        ],
        "stages": {
            names[step.stage]: {
                "ipis": step.spans,
                "since_send_ticks": step.since_send_cycles,
                "step_ticks": step.step_cycles,
            }
            for step in part.steps
        },
    }


def _offset(run: RunResult) -> int:
    """Guest TSC minus the host's."""
    if run.clock is None or run.clock.guest_tsc_offset is None:
        raise LabError("KVM did not report the guest's TSC offset")
    return run.clock.guest_tsc_offset


def _true_ipis(
    rows: Iterable[Mapping[str, Any]], stamps: Sequence[Stamp], cpus: Sequence[int]
) -> Iterable[TrueIpi]:
    for _repetition, group in groupby(rows, key=lambda row: row["repetition"]):
        ipis = list(group)
        if len({ipi["seq"] for ipi in ipis}) != len(ipis):
            raise LabError("the true stages are found for sends with one target only")
        ends = [*(ipi["send_tsc"] for ipi in ipis[1:]), _last_stamp(ipis[-1])]
        for ipi, until in zip(ipis, ends, strict=True):
            found = stages_of(ipi, until, stamps, cpus)
            yield TrueIpi(**{name: ipi[name] for name in _PLACE}, stamps=found)


def _last_stamp(ipi: Mapping[str, Any]) -> int:
    stamps = (ipi[f"{spec.name}_tsc"] for spec in STAGES if spec.guest)
    return max(int(stamp) for stamp in stamps if stamp is not None)


def _spans(ipis: Sequence[TrueIpi]) -> Spans:
    n = len(ipis)
    tsc = np.full((n, len(Stage)), ABSENT)
    for row, ipi in enumerate(ipis):
        for stage, stamp in ipi.stamps.items():
            tsc[row, stage] = stamp
    uncounted = np.full(n, ABSENT)
    return Spans(
        seq=np.array([ipi.seq for ipi in ipis]),
        sender=np.full(n, SENDER),
        target=np.array([ipi.target for ipi in ipis]),
        path=np.zeros(n, np.int8),
        tsc=tsc,
        sender_exits=uncounted,
        target_exits=uncounted,
        suspect=np.zeros(n, np.bool_),
        unmatched_events={},
    )
