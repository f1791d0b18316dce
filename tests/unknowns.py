# SPDX-License-Identifier: Apache-2.0
"""What is not known is null in a recording's tables: no 0, -1 or other number stands for it."""

import json
from pathlib import Path
from typing import Any

from recordings import read_table

from ipitrace.recording.writer import TABLES, file_of

_TEXTS = {"scenario", "path", "sequence", "kind", "mode"}
_NUMBERS = {"repetition", "seq", "ipi"}  # from 0 on
_VCPUS = {"sender", "target", "vcpu"}
_STAMPS = {"tsc", "ts_ns"}
# A vector, or what the processor calls itself; 0 is neither (bpf/ipitrace_events.h).
_NEVER_ZERO = {"kvm_exit", "vmx_deliver_interrupt", "vmx_deliver_posted_interrupt"}
_EXITS = ("sender_exits", "target_exits")


def unknowns_as_numbers(recording: Path) -> list[str]:
    """Every column that holds a number which cannot be one; the columns it knows are all."""
    run = json.loads((recording / "run.json").read_text())
    found = []
    for table in TABLES:
        if not (recording / file_of(table)).exists():
            continue
        columns = read_table(recording, table).to_pydict()
        for name, values in columns.items():
            wrong = [v for v in values if v is not None and not _can_be(name, v, run)]
            if wrong or not _known(name):
                found.append(f"{table}.{name}: {wrong[:3]}")
        if table == "spans":
            found += _exits_not_counted(run, columns)
        elif table == "host_events":
            rows = zip(columns["kind"], columns["detail"], strict=True)
            found += sorted({f"{k}.detail 0" for k, v in rows if k in _NEVER_ZERO and v == 0})
    return found


def _known(name: str) -> bool:
    return (
        name in {*_TEXTS, *_NUMBERS, *_VCPUS, *_STAMPS, *_EXITS, "suspect", "cpu"}
        or name in {"arg", "word", "detail"}
        or name.endswith("_tsc")
    )


def _can_be(name: str, value: Any, run: dict[str, Any]) -> bool:
    if name in _TEXTS:
        return bool(value) or name == "sequence"
    if name in _STAMPS or name.endswith("_tsc"):
        return 0 < value < 2**63
    if name in _VCPUS:
        return 0 <= value < run["guest"]["n_vcpus"]
    if name == "cpu":
        return 0 <= value < 8192  # the most that NR_CPUS may be
    return value is False or value is True or 0 <= value < 2**64 - 1


def _exits_not_counted(run: dict[str, Any], columns: dict[str, list[Any]]) -> list[str]:
    """Scenarios whose spans count exits where kvm_exit does not fire, or do not where it does."""
    found = []
    for row in run["scenarios"]:
        source = (row["exits"] or {}).get("source") or ""
        for name in _EXITS:
            values = [
                value
                for value, scenario in zip(columns[name], columns["scenario"], strict=True)
                if scenario == row["name"]
            ]
            counted = source.startswith("kvm_exit ")
            if any((value is not None) != counted for value in values):
                found.append(f"spans.{name} of {row['name']}, exits from {source or 'nothing'}")
    return found
