# SPDX-License-Identifier: Apache-2.0
"""What must hold of every run.json, and of other JSON, wherever it comes from."""

import functools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator


@functools.cache
def _validator(name: str = "run") -> Draft202012Validator:
    path = resources.files("ipitrace").joinpath(f"schemas/{name}.schema.json")
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _nulls(value: object, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _nulls(inner, f"{path}.{name}" if path else name)


def unexplained_nulls(row: Mapping[str, Any]) -> list[str]:
    """The fields of a result row that are null without a word why.

    `reason` is that word for a row that was not measured, and null for one that was.
    """
    if row["status"] != "measured":
        return [] if row["reason"] else ["reason"]
    told = row["absent"] or {}
    return [path for path in _nulls(row) if path not in {"reason", *told}]


def told_in_vain(row: Mapping[str, Any]) -> list[str]:
    """Fields that are said to be absent and are not."""
    return sorted(set(row["absent"] or {}) - set(_nulls(row)))


def assert_sound(run: Mapping[str, Any]) -> None:
    """`run` is a whole run.json: it follows its schema and leaves no null unexplained."""
    _validator().validate(json.loads(json.dumps(run)))
    for row in run["scenarios"]:
        assert unexplained_nulls(row) == [], row["name"]
        assert told_in_vain(row) == [], row["name"]
        if row["status"] == "measured":
            for name in ("send_cycles", "deliver_cycles", "round_trip_cycles"):
                figures = row[name]
                if figures is not None:
                    order = [figures[key] for key in ("min", "p50", "p90", "p99", "max")]
                    assert order == sorted(order), name
                    assert order[0] > 0, name
    assert (run["observer"] is None) == (run["observer_absent"] is not None)
    assert run["complete"] == (run["failure"] is None)


def assert_sound_interval(interval: Mapping[str, Any]) -> None:
    """`interval` is a whole line of `watch --json`, and its sums add up."""
    _validator("watch").validate(json.loads(json.dumps(interval)))
    for vm in interval["vms"]:
        for period in ("delta", "total"):
            listed = sum(pair["ipis"][period] for pair in vm["pairs"])
            placed = listed + vm["pairs_left_out"]["ipis"][period]
            assert placed == sum(kind["ipis"][period] for kind in vm["kinds"])
            assert placed <= vm["ipis"][period]
            assert placed == sum(vcpu["sent"][period] for vcpu in vm["vcpus"])
        assert (vm["exits"]["reasons"] is None) == (vm["exits"]["absent"] is not None)


def assert_sound_list(listed: Mapping[str, Any]) -> None:
    """`listed` is what `list --json` prints, and what is unknown of a VM has a reason."""
    _validator("list").validate(json.loads(json.dumps(listed)))
    for vm in listed["vms"]:
        for name in ("memory_bytes", "apic_mode", "backend", "uid"):
            assert (vm[name] is None) == (name in vm["unknown"]), name
