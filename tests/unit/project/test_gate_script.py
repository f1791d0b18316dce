# SPDX-License-Identifier: Apache-2.0
"""How `docs/ci/ipitrace-gate.sh --self-test` judges reports; .ci/run runs it with real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ipitrace

GATE = Path(ipitrace.__file__).parents[1] / "docs" / "ci" / "ipitrace-gate.sh"

# Takes the place of `ipitrace ab`: writes the report of the side that it is asked about.
REPORTS = """
import json, os, sys
out = sys.argv[sys.argv.index("--output") + 1]
burnt = "--b-run" in sys.argv
low, high = json.loads(os.environ["MOVED"])
figures = {"n": 10, "median": 100_000, "low": 99_000, "high": 101_000}
slow = {"n": 10, "median": 300_000, "low": low + 101_000, "high": high + 99_000}
rows = [{"metric": f"{m}.p50", "verdict": "same", "base": figures, "patched": figures}
        for m in ("send", "deliver", "round_trip")]
if burnt:
    rows[2] |= {"verdict": "worse", "patched": slow}
with open(out, "w") as file:
    json.dump({"comparisons": [{"rows": rows}]}, file)
sys.exit(1 if burnt else 0)
"""


def self_test(out: Path, low: int, high: int, rounds: int = 10) -> subprocess.CompletedProcess[str]:
    """The self-test, where the intervals allow R to have moved by `low` to `high` cycles."""
    (out / "reports.py").write_text(REPORTS)
    env = {
        **os.environ,
        "IPITRACE": f"{sys.executable} {out / 'reports.py'}",
        "OUT": str(out),
        "MOVED": json.dumps([low, high]),
        "ROUNDS": str(rounds),
    }
    command = ["sh", GATE, "--self-test"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("low", "high", "why"),
    [
        (199_000, 201_000, None),
        (191_000, 191_000, None),
        (165_000, 235_000, None),
        (180_000, 189_000, "that is not what was burnt"),
        (211_000, 215_000, "that is not what was burnt"),
        (150_000, 201_000, "too noisy"),
        (199_000, 250_000, "too noisy"),
    ],
)
def test_the_move_must_be_what_was_burnt_and_be_shown(
    low: int, high: int, why: str | None, tmp_path: Path
) -> None:
    done = self_test(tmp_path, low, high)
    assert f"(95 % intervals: {low} to {high}), 200000 were burnt" in done.stdout, done.stderr
    assert done.returncode == (0 if why is None else 1)
    if why is not None:
        assert why in done.stderr


def test_few_rounds_have_no_intervals(tmp_path: Path) -> None:
    done = self_test(tmp_path, 199_000, 201_000, rounds=5)
    assert done.returncode == 1
    assert "needs 6 ROUNDS" in done.stderr
