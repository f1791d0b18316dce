# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ipitrace.base.errors import UsageError
from ipitrace.compare.gates import Gate, GateFile, parse_gate, read_gates
from ipitrace.compare.model import GateKind


@pytest.mark.parametrize(
    ("spec", "scenario", "metrics", "limit", "sign"),
    [
        ("deliver.p50:+5%", None, ("deliver.p50",), 0.05, 1),
        ("deliver:+5%", None, ("deliver.p50",), 0.05, 1),
        ("self:send.p99.9:+2.5%", "self", ("send.p99.9",), 0.025, 1),
        ("exits:+0.1", None, ("exits.sender", "exits.target"), 0.1, 1),
        ("unicast-running:exits.sender:+0", "unicast-running", ("exits.sender",), 0, 1),
        ("exits.sender.MSR_WRITE:+0.1", None, ("exits.sender.MSR_WRITE",), 0.1, 1),
        ("path.exitless:-0.01", None, ("path.exitless",), 0.01, -1),
        ("path.msr-fastpath:+0.1", None, ("path.msr-fastpath",), 0.1, 1),
        ("path.msr-fastpath:-0.1", None, ("path.msr-fastpath",), 0.1, -1),
    ],
)
def test_gates_are_read(
    spec: str, scenario: str | None, metrics: tuple[str, ...], limit: float, sign: int
) -> None:
    assert parse_gate(spec) == Gate(spec, scenario, metrics, pytest.approx(limit), sign)


@pytest.mark.parametrize(
    ("kind", "spec", "instead"),
    [
        ("fail-on", "deliver.p50:-30%", "--require deliver.p50:-30%;"),
        ("fail-on", "deliver.p50:-30%", "--fail-on deliver.p50:+30%."),
        ("fail-on", "exits:-0.5", "--require exits:-0.5;"),
        ("fail-on", "deliver:-0%", "--require deliver:-0%;"),
        ("fail-on", "self:path.exitless:+0.3", "--require self:path.exitless:+0.3;"),
        ("fail-on", "path.mmio:-0.3", "--require path.mmio:-0.3;"),
        ("require", "deliver.p50:+30%", "--fail-on deliver.p50:+30%."),
        ("require", "deliver.p50:+30%", "--require deliver.p50:-30%;"),
        ("require", "path.exitless:-0.3", "--fail-on path.exitless:-0.3."),
        ("require", "exits.sender.MSR_WRITE:+1", "--require exits.sender.MSR_WRITE:-1;"),
    ],
)
def test_a_limit_on_the_wrong_side_names_the_right_option(
    kind: str, spec: str, instead: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(spec, GateKind(kind))
    assert f"--{kind} {spec}" in caught.value.message
    assert instead in caught.value.hint


@pytest.mark.parametrize("spec", ["deliver:-0%", "deliver:-100%", "exits:-0"])
def test_what_nobody_can_meet_is_not_required(spec: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(spec, GateKind.REQUIRE)


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
        'fail-on = ["deliver:+5%", "exits:+0.1"]\nrequire = ["send:-30%"]\n'
        'allow = ["microcode"]\nstrict = true\n'
    )
    fail_on = ("deliver:+5%", "exits:+0.1")
    assert read_gates(path) == GateFile(fail_on, ("send:-30%",), ("microcode",), strict=True)
    path.write_text("")
    assert read_gates(path) == GateFile()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fail-on = 'deliver:+5%'", "not an array of strings"),
        ("fail-on = [5]", "not an array of strings"),
        ("require = 'send:-30%'", "not an array of strings"),
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
