# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ipitrace.compare.gates import Gate, GateFile, parse_gate, read_gates
from ipitrace.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "scenario", "metrics", "limit", "sign"),
    [
        ("deliver.p50:+5%", None, ("deliver.p50",), 0.05, 1),
        ("deliver:+5%", None, ("deliver.p50",), 0.05, 1),
        ("self:send.p99.9:-2.5%", "self", ("send.p99.9",), 0.025, -1),
        ("exits:+0.1", None, ("exits.sender", "exits.target"), 0.1, 1),
        ("unicast-running:exits.sender:+0", "unicast-running", ("exits.sender",), 0, 1),
        ("exits.sender.MSR_WRITE:+0.1", None, ("exits.sender.MSR_WRITE",), 0.1, 1),
        ("path.exitless:-0.01", None, ("path.exitless",), 0.01, -1),
    ],
)
def test_gates_are_read(
    spec: str, scenario: str | None, metrics: tuple[str, ...], limit: float, sign: int
) -> None:
    assert parse_gate(spec) == Gate(spec, scenario, metrics, pytest.approx(limit), sign)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "deliver", "deliver.p50", "deliver:5%", "deliver:+5", "deliver:+%", "exits:+5%"),
        *("delivery:+5%", "deliver.p42:+5%", "exits.both:+1", "path:+1", "deliver:+5%:x", ":+5%"),
    ],
)
def test_what_is_no_gate_is_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(spec)
    assert caught.value.hint


def test_a_file_of_gates(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(
        'fail-on = ["deliver:+5%", "exits:+0.1"]\nallow = ["microcode"]\nstrict = true\n'
    )
    assert read_gates(path) == GateFile(("deliver:+5%", "exits:+0.1"), ("microcode",), strict=True)
    path.write_text("")
    assert read_gates(path) == GateFile()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fail-on = 'deliver:+5%'", "not an array of strings"),
        ("fail-on = [5]", "not an array of strings"),
        ("fail_on = []", "unknown key 'fail_on'"),
        ("strict = 'yes'", "neither true nor false"),
        ("[[", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_gates(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_gates(tmp_path / "none.toml")
