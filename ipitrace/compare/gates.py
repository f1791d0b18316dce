# SPDX-License-Identifier: Apache-2.0
"""Gates: limits on how much worse a metric may get, or on how much better it must get."""

import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ipitrace.base.errors import UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.untrusted import read_bounded
from ipitrace.compare.model import GateKind, GateResult, GateState, Row
from ipitrace.compare.statistics import ALPHA, fewest, holm
from ipitrace.words.exit_reasons import SVM_REASONS, VMX_REASONS
from ipitrace.words.metrics import Scale, expand, metric_of, scale_of
from ipitrace.words.paths import IpiPath

_SPEC = re.compile(
    r"(?:(?P<scenario>[a-z0-9=-]+):)?(?P<metric>[A-Za-z][^:]*):(?P<limit>[+-]\d{1,9}(?:\.\d{1,9})?)(?P<unit>%?)"
)
_MOST_FILE_BYTES = 16 << 10  # 300 gates; parsing a dotted key takes quadratic time
_ARRAYS = ("fail-on", "require", "allow")
_HINT = (
    "A gate is [SCENARIO:]METRIC:LIMIT, for example deliver.p50:+5%, "
    "unicast-running:round_trip.p99:+10%, exits:+0.1 or path.exitless:-0.01."
)
_ROUNDING = 1e-9  # 1.2 - 1.1 is not quite 0.1


@dataclass(frozen=True)
class Gate:
    """A limit on the change of a metric in one direction: not beyond it, or at least to it.

    Attributes:
        spec: as the user wrote it.
        scenario: None means every scenario.
        metrics: full names.
        limit: a share of the base for cycles, otherwise in the metric's unit; never negative.
        sign: 1 if the limit is on an increase, -1 if it is on a decrease: towards the worse
            for fail-on, towards the better for require.
    """

    spec: str
    scenario: str | None
    metrics: tuple[str, ...]
    limit: float
    sign: int
    kind: GateKind = GateKind.FAIL_ON


@dataclass(frozen=True)
class GateFile:
    """The contents of a file of gates."""

    fail_on: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    strict: bool = False


def parse_gate(spec: str, kind: GateKind = GateKind.FAIL_ON) -> Gate:
    """Read one gate.

    Raises:
        UsageError: the text is not a gate, or its limit is on the wrong side.
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
    gate = Gate(spec, match["scenario"], metrics, abs(value), sign, kind)
    _check_direction(gate, match["limit"] + match["unit"])
    return gate


def _check_direction(gate: Gate, limit: str) -> None:
    """Check that a limit is towards the worse for fail-on, and towards the better for require.

    If neither direction is better, both are accepted.

    Raises:
        UsageError: the direction is wrong, or the limit cannot be met.
    """
    better = metric_of(gate.metrics[0]).better
    required = gate.kind == GateKind.REQUIRE
    if better and (gate.sign == better) != required:
        spec = plain(gate.spec, 60)
        turned = f"{spec.removesuffix(limit)}{'-' if gate.sign > 0 else '+'}{limit[1:]}"
        no_worse, at_least = (turned, spec) if gate.sign == better else (spec, turned)
        direction = "for the better" if gate.sign == better else "for the worse"
        raise UsageError(
            f"--{gate.kind} {spec}: {'less' if better < 0 else 'more'} is better for this metric, "
            f"and the limit is on a change {direction}.",
            f"To require an improvement, use --require {at_least}; to limit a regression, use "
            f"--fail-on {no_worse}. In a file of gates: require, fail-on.",
        )
    if required and not gate.limit:
        raise UsageError(
            f"--require {plain(gate.spec, 60)} has no effect.", "Give a limit that is not 0."
        )
    if required and gate.limit >= 1 and scale_of(gate.metrics[0]) == Scale.RELATIVE:
        raise UsageError(
            f"--require {plain(gate.spec, 60)}: cycles cannot decrease by 100 % or more.",
            "Give a smaller limit: -50% means half of the cycles.",
        )


def read_gates(path: Path) -> GateFile:
    """Read a TOML file of `fail-on`, `require`, `allow` (arrays of strings) and `strict`.

    Raises:
        UsageError: it cannot be read, or has other contents.
    """
    hint = (
        'For example: fail-on = ["deliver.p50:+5%", "exits:+0.1"]; \'ipitrace compare --help\' '
        "shows a whole file."
    )
    try:
        data = tomllib.loads(read_bounded(path, _MOST_FILE_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"The gates in {path} cannot be read: {why}.", hint) from error
    unknown = sorted(data.keys() - {*_ARRAYS, "strict"})
    if unknown:
        raise UsageError(f"{path} has the unknown key {unknown[0][:60]!r}.", hint)
    strict = data.get("strict", False)
    if not isinstance(strict, bool):
        raise UsageError(f"strict in {path} is neither true nor false.", hint)
    fail_on, require, allow = (_strings(data, key, path) for key in _ARRAYS)
    return GateFile(fail_on, require, allow, strict)


def _strings(data: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key} in {path} is not an array of strings.", _HINT)
    return tuple(value)


def check_gates(gates: Sequence[Gate], rows: Iterable[Row]) -> tuple[GateResult, ...]:
    """Check every gate against the rows that it matches.

    Raises:
        UsageError: a gate matches nothing that was measured on both sides.
    """
    known = list(rows)
    meant = [(gate, row) for gate in gates for row in known if _is_about(gate, row)]
    for gate in gates:
        if not any(gate is one for one, _row in meant):
            raise UsageError(
                f"The gate '{gate.spec}' matches nothing that was measured on both sides.",
                "Run 'ipitrace compare' without this gate: it lists the scenarios and metrics.",
            )
    # Gated metrics were chosen before the measurement. They are a family of their own.
    family = list({(row.scenario, row.metric): row for _gate, row in meant}.values())
    p_values = dict(zip(map(id, family), holm([row.p for row in family]), strict=True))
    return tuple(_check(gate, row, p_values[id(row)], len(family)) for gate, row in meant)


def named_counts(gates: Iterable[Gate]) -> tuple[str, ...]:
    """Exits by reason and paths that gates name, to be compared even if they never happened.

    Raises:
        UsageError: a reason or path does not exist.
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
                f"Known: {', '.join(like)}." if like else "'ipitrace compare --all' lists them.",
            )
    return counts


_PATHS = frozenset(path.text for path in IpiPath)
_REASONS = frozenset({*VMX_REASONS.values(), *SVM_REASONS.values()})


def _is_about(gate: Gate, row: Row) -> bool:
    return row.metric in gate.metrics and gate.scenario in {None, row.scenario}


def _check(gate: Gate, row: Row, p: float, family: int) -> GateResult:
    """The gate's state, from the change and its interval in the limit's direction."""
    change = gate.sign * row.change
    least, most = -math.inf, math.inf
    if row.change_low is not None and row.change_high is not None:
        least, most = sorted((gate.sign * row.change_low, gate.sign * row.change_high))
    state, why = GateState.OPEN, ""
    real = p <= ALPHA and least > 0
    if gate.kind == GateKind.REQUIRE:
        if real and least >= gate.limit - _ROUNDING:
            state, why = GateState.HELD, "the whole interval of the change is beyond the limit"
        elif most < gate.limit - _ROUNDING:
            state, why = GateState.BROKEN, "the whole interval of the change is short of the limit"
    elif real and change > gate.limit + _ROUNDING:
        state, why = (
            GateState.BROKEN,
            "the change is statistically significant and beyond the limit",
        )
    elif most <= gate.limit + _ROUNDING:
        state, why = GateState.HELD, "the whole interval of the change is within the limit"
    why = why or _why_open(gate, row, least, family)
    return GateResult(gate.spec, gate.kind, row.scenario, row.metric, p, state, why)


def _why_open(gate: Gate, row: Row, least: float, family: int) -> str:
    fewest_units = fewest(family)
    gated = f"{family} gated metric" + ("" if family == 1 else "s")
    if row.between_recordings is None and min(row.base.n, row.patched.n) < fewest_units:
        return f"too few repetitions: with {gated}, each side needs {fewest_units}"
    if least == -math.inf:
        return "too few recordings: the change has no interval yet"
    if gate.kind == GateKind.FAIL_ON:
        return "the interval of the change reaches beyond the limit"
    if least < gate.limit - _ROUNDING:
        return "the interval of the change is not entirely beyond the limit"
    return f"with {gated}, the change is not statistically significant"
