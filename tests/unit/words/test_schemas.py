# SPDX-License-Identifier: Apache-2.0
"""The words that the JSON schemas enumerate are those that the package has, in its order."""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, get_args

import pytest

from ipitrace.compare.model import GateKind, GateState, Verdict
from ipitrace.recording.writer import TABLES
from ipitrace.storm.transport.agent import LibvirtAgent, SocketAgent
from ipitrace.storm.transport.local import LocalShell
from ipitrace.storm.transport.registry import TRANSPORTS
from ipitrace.storm.transport.ssh import SshShell
from ipitrace.vm.confidential import Kind
from ipitrace.vm.model import ApicMode, Evidence
from ipitrace.watch.traffic import MODES
from ipitrace.words.disturbances import DisturbanceKind
from ipitrace.words.metrics import CYCLES_METRICS, SIDES, Scale, exits_metric, path_metric
from ipitrace.words.paths import IpiPath
from ipitrace.words.scenarios import Mode, Pattern, ScenarioStatus, SendMethod, TargetState
from ipitrace.words.stages import STAGES
from ipitrace.words.threads import ThreadKind

PATHS = [path.text for path in IpiPath]
UNSEEN_BY_WATCH = {
    path.text
    for path in (
        IpiPath.MSR_FASTPATH,
        IpiPath.EXITLESS,
        IpiPath.AVIC_INVALID_PAGE,
        IpiPath.AVIC_INVALID_VECTOR,
    )
}
"""No event of the ones that are counted tells of the first two; the others deliver no IPI."""
WATCHED_PATHS = [path for path in PATHS if path not in UNSEEN_BY_WATCH]
UNITS = [m.unit for m in (CYCLES_METRICS[0], exits_metric("sender", "HLT"), path_metric("mmio"))]

WORDS: dict[str, dict[str, list[str | None]]] = {
    "run": {
        "guest/0/kind": ["micro"],
        "guest/1/kind": ["linux", "native"],
        "guest/1/via": [known.scheme or known.form for known in TRANSPORTS],
        "guest/1/apic_mode/0": [mode for mode in get_args(ApicMode) if mode != "off"],
        "tables/propertyNames": [*TABLES],
        "scenario/pattern": [*Pattern],
        "scenario/target_state": [*TargetState],
        "scenario/send_method": [*SendMethod],
        "scenario/status": [*ScenarioStatus],
        "scenario/paths/0/propertyNames": [*PATHS],
        "stage": [spec.name for spec in STAGES],
        "side": [*SIDES],
        "repetition/mode": [*Mode],
        "repetition/paths/0/propertyNames": [*PATHS],
        "disturbance/kind": [*DisturbanceKind],
        "disturbance/mode/0": [*Mode],
        "occupant/kind": [*ThreadKind],
    },
    "watch": {
        "vm/pairs/items/mode": [*MODES],
        "vm/pairs/items/path": [*WATCHED_PATHS],
        "vm/kinds/items/mode": [*MODES],
        "vm/kinds/items/path": [*WATCHED_PATHS],
        "vm/others/items/mode": [*MODES],
    },
    "compare": {
        "verdict": [*Verdict],
        "row/unit": [*UNITS],
        "row/scale": [*Scale],
        "gate/kind": [*GateKind],
        "gate/state": [*GateState],
        "difference/accepted": ["may differ", "--allow"],
    },
    "list": {
        "missing/items": ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"],
        "vm/apic_mode": [*get_args(ApicMode), None],
        "confidential/kind": [*get_args(Kind)],
        "vcpu/evidence": [*get_args(Evidence), None],
    },
}


def enumerations(schema: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[Any]]]:
    """Each `enum` of a schema, by where it is, less the words that only JSON Schema needs."""
    if isinstance(schema, dict):
        if "enum" in schema:
            skipped = {"properties", "$defs", "anyOf"}
            yield "/".join(part for part in path if part not in skipped), schema["enum"]
        for name, inner in schema.items():
            yield from enumerations(inner, (*path, name))
    elif isinstance(schema, list):
        for i, inner in enumerate(schema):
            yield from enumerations(inner, (*path, str(i)))


@pytest.mark.parametrize("name", WORDS)
def test_schemas_enumerate_the_words_that_there_are(name: str) -> None:
    path = resources.files("ipitrace").joinpath(f"schemas/{name}.schema.json")
    found = list(enumerations(json.loads(path.read_text())))
    assert dict(found) == WORDS[name]
    assert len(found) == len(WORDS[name])


@pytest.mark.parametrize("way", [SshShell, SocketAgent, LibvirtAgent, LocalShell])
def test_a_run_names_its_transport_as_via_does(way: type) -> None:
    assert way.via in {known.scheme or known.form for known in TRANSPORTS}  # type: ignore[attr-defined]


def test_every_schema_is_checked() -> None:
    folder = resources.files("ipitrace").joinpath("schemas")
    assert {f"{name}.schema.json" for name in WORDS} == {file.name for file in folder.iterdir()}
