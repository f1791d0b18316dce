# SPDX-License-Identifier: Apache-2.0
"""Gates: how much worse a metric may get before the comparison fails."""

import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ipitrace.compare.model import GateResult, Held, Row
from ipitrace.compare.statistics import ALPHA, fewest, holm
from ipitrace.correlate.paths import Path as IpiPath
from ipitrace.errors import UsageError
from ipitrace.host.exit_reasons import SVM_REASONS, VMX_REASONS
from ipitrace.metrics import Scale, expand, scale_of
from ipitrace.untrusted import read_bounded

_SPEC = re.compile(
    r"(?:(?P<scenario>[a-z0-9-]+):)?(?P<metric>[A-Za-z][^:]*):(?P<limit>[+-]\d{1,9}(?:\.\d{1,9})?)(?P<unit>%?)"
)
_MOST_FILE_BYTES = 64 << 10  # a thousand gates
_HINT = (
    "A gate is [SCENARIO:]METRIC:LIMIT, for instance deliver.p50:+5%, "
    "unicast-running:round_trip.p99:+10%, exits:+0.1 or path.exitless:-0.01."
)


@dataclass(frozen=True)
class Gate:
    """Fail when a metric moves further than `limit` in the limit's direction.

    Attributes:
        spec: as the person wrote it.
        scenario: None is every scenario.
        metrics: full names.
        limit: a share of the base for cycles, else in the metric's unit; never negative.
        sign: 1 when the metric may not grow by more, -1 when it may not fall by more.
    """

    spec: str
    scenario: str | None
    metrics: tuple[str, ...]
    limit: float
    sign: int


@dataclass(frozen=True)
class GateFile:
    """What a gates file says."""

    fail_on: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    strict: bool = False


def parse_gate(spec: str) -> Gate:
    """Read one gate.

    Raises:
        UsageError: it is none.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec[:60]!r} is not a gate.", _HINT)
    metrics = expand(match["metric"])
    relative = scale_of(metrics[0]) == Scale.RELATIVE
    if relative != bool(match["unit"]):
        wants = "a share of the base (+5%)" if relative else "a plain number (+0.1)"
        raise UsageError(f"The limit of {spec[:60]!r} should be {wants}.", _HINT)
    value = float(match["limit"]) / (100 if relative else 1)
    sign = -1 if match["limit"].startswith("-") else 1
    return Gate(spec, match["scenario"], metrics, abs(value), sign)


def read_gates(path: Path) -> GateFile:
    """Read a TOML file of `fail-on`, `allow` (both arrays of strings) and `strict`.

    Raises:
        UsageError: it cannot be read, or says something else.
    """
    hint = 'For instance: fail-on = ["deliver.p50:+5%", "exits:+0.1"]'
    try:
        data = tomllib.loads(read_bounded(path, _MOST_FILE_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"The gates in {path} cannot be read: {why}.", hint) from error
    unknown = sorted(data.keys() - {"fail-on", "allow", "strict"})
    if unknown:
        raise UsageError(f"{path} has the unknown key {unknown[0][:60]!r}.", hint)
    strict = data.get("strict", False)
    if not isinstance(strict, bool):
        raise UsageError(f"strict in {path} is neither true nor false.", hint)
    return GateFile(_strings(data, "fail-on", path), _strings(data, "allow", path), strict)


def _strings(data: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key} in {path} is not an array of strings.", _HINT)
    return tuple(value)


def check_gates(gates: Sequence[Gate], rows: Iterable[Row]) -> tuple[GateResult, ...]:
    """Hold every gate against the rows it is about.

    Raises:
        UsageError: a gate is about nothing that was measured on both sides.
    """
    known = list(rows)
    meant = [(gate, row) for gate in gates for row in known if _is_about(gate, row)]
    for gate in gates:
        if not any(gate is one for one, _row in meant):
            raise UsageError(
                f"The gate '{gate.spec}' is about nothing that was measured.",
                "See 'ipitrace compare' without it for the scenarios and metrics there are.",
            )
    # Named before anything was measured, they are a family by themselves.
    family = list({(row.scenario, row.metric): row for _gate, row in meant}.values())
    p_values = dict(zip(map(id, family), holm([row.p for row in family]), strict=True))
    return tuple(_check(gate, row, p_values[id(row)], len(family)) for gate, row in meant)


def named_counts(gates: Iterable[Gate]) -> tuple[str, ...]:
    """Exits by reason and paths that gates name: they hold, too, where these never happen.

    Raises:
        UsageError: there is no such reason, or path.
    """
    names = dict.fromkeys(name for gate in gates for name in gate.metrics)
    found = [name for name in names if name.startswith("path.") or name.count(".") > 1]
    counts = tuple(name for name in found if scale_of(name) == Scale.ABSOLUTE)
    for name in counts:
        kind, what = name.split(".", 1)
        known = _PATHS if kind == "path" else _REASONS
        last = what if kind == "path" else what.partition(".")[2]
        if last not in known and not (kind == "exits" and last.endswith("_exits")):
            like = get_close_matches(last, known) if kind == "exits" else sorted(known)
            raise UsageError(
                f"There is no {'path' if kind == 'path' else 'exit reason'} {last[:60]!r}.",
                f"Known: {', '.join(like)}." if like else "'ipitrace compare --all' shows them.",
            )
    return counts


_PATHS = frozenset(path.text for path in IpiPath)
_REASONS = frozenset({*VMX_REASONS.values(), *SVM_REASONS.values()})


def _is_about(gate: Gate, row: Row) -> bool:
    return row.metric in gate.metrics and gate.scenario in {None, row.scenario}


def _check(gate: Gate, row: Row, p: float, family: int) -> GateResult:
    change = gate.sign * row.change
    bounds = (row.change_low, row.change_high)
    least, most = (-math.inf, math.inf)
    if bounds[0] is not None and bounds[1] is not None:
        least, most = sorted(gate.sign * bound for bound in (bounds[0], bounds[1]))
    if p <= ALPHA and least > 0 and change > gate.limit:
        held, why = Held.BROKEN, "the change is real and beyond the limit"
    elif most <= gate.limit:
        held, why = Held.HELD, "the whole interval of the change is within the limit"
    else:
        held, why = Held.OPEN, _why_open(row, family)
    return GateResult(gate.spec, row.scenario, row.metric, p, held, why)


def _why_open(row: Row, family: int) -> str:
    least = fewest(family)
    if row.between_recordings is None and min(row.base.n, row.patched.n) < least:
        return f"too few repetitions: with {family} gated metrics it takes {least} a side"
    return "the interval of the change reaches beyond the limit"
