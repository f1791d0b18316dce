# SPDX-License-Identifier: Apache-2.0
"""`ipitrace ab` and docs/ci/ipitrace-gate.sh with a gate on getting better, on this host."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ipitrace
from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live("kvm")

ROOT = Path(ipitrace.__file__).parents[1]
GATE = ROOT / "docs" / "ci" / "ipitrace-gate.sh"
PROGRAM = (sys.executable, "-m", "ipitrace")
FEW = ("--no-trace", "--scenario", "unicast-running", "--count", "120")
BUSY = ("--allow", "other_vms", "--retries", "3")  # what this machine may be
BURNT = "--burn-cycles 10000000"  # much more than the machine's noise


def test_an_improvement_is_proved_while_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    """Handlers waste cycles in A alone."""
    place = tmp_path / "ab"
    words = ("ab", "--a", "true", "--b", "true", "--a-run", BURNT, "--rounds", "4", "-o", place)
    gates = ("--require", "round_trip.p50:-30%", "--strict", *BUSY)
    master, slave = os.openpty()
    drawn = bytearray()

    def read() -> None:
        while piece := _piece(master):
            drawn.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [*PROGRAM, *words, *gates, "--format", "json", "--", *FEW],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=slave,
        check=False,
    )
    os.close(slave)
    reader.join()
    os.close(master)
    said = drawn.decode()
    assert done.returncode == ExitCode.OK, said
    (found,) = json.loads(done.stdout)["comparisons"]
    assert [(gate["kind"], gate["state"]) for gate in found["gates"]] == [("require", "held")]
    for side, rounds in (("A", "234"), ("B", "1234")):
        for n in rounds:
            assert re.search(rf"\] +\d+% round {n} of 4, {side}, about \d+ s left", said), said
    again = f"ipitrace compare {place}/a {place}/b"
    first, *repeated, last, rest = (line.rpartition("\r\x1b[K")[2] for line in said.split("\r\n"))
    assert first == f"ipitrace: measuring A and B in 4 rounds; the recordings go to {place}"
    assert last == f"ipitrace: all rounds are measured; to compare them again: {again}"
    assert not rest
    assert all("The measurement is repeated." in line for line in repeated), repeated


def _piece(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # EIO: nobody has the terminal any more
        return b""


@pytest.mark.parametrize(
    ("compare", "code"),
    [
        ("--require deliver.p50:-30%", 0),
        ("--require deliver.p50:-30% --strict", 4),
        ("--fail-on deliver.p50:-30%", 2),
    ],
)
def test_the_gate_script(compare: str, code: int, tmp_path: Path) -> None:
    """One round proves nothing: that is open, and fails with --strict only."""
    out = tmp_path / "out"
    env = {
        **os.environ,
        "IPITRACE": " ".join(PROGRAM),
        "OUT": str(out),
        "ROUNDS": "1",
        "RUN": " ".join(FEW),
        "COMPARE": " ".join((compare, *BUSY)),
    }
    env.pop("GITHUB_STEP_SUMMARY", None)
    done = subprocess.run(
        ["sh", GATE], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    if code == ExitCode.USAGE:
        assert "--require deliver.p50:-30%" in done.stderr
        assert not (out / "judged").exists()
        return
    (found,) = json.loads((out / "judged.json").read_text())["comparisons"]
    assert [gate["state"] for gate in found["gates"]] == ["open"]
    assert done.stdout.startswith("Gates: 1 open. ")
    lines = done.stderr.splitlines()
    assert lines[0].endswith(f"the report goes to {out}/judged.json")
    assert f"the recordings go to {out}/judged" in lines[1]
    assert "ipitrace: round 1 of 1 is measured" in lines
