# SPDX-License-Identifier: Apache-2.0
"""docs/ci/github-actions.yml: its steps, carried out as a runner would, with small counts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ipitrace

pytestmark = pytest.mark.live("kvm")

ROOT = Path(ipitrace.__file__).parents[1]
WORKFLOW = ROOT / "docs" / "ci" / "github-actions.yml"
# What the machine brings: counts that take seconds, and limits that its noise keeps.
SMALL = {
    "RECORDINGS": "2",
    "RUN": "--no-trace --scenario unicast-running --count 120",
    "COMPARE": "--fail-on deliver.p50:+9900% --fail-on exits:+99 --allow other_vms",
}


def scripts(job: dict[str, Any]) -> Iterator[str]:
    """What a job's steps run, for each combination of its matrix."""
    sides = job.get("strategy", {}).get("matrix", {}).get("side", [None])
    for side in sides:
        for step in job["steps"]:
            if "run" in step:
                yield step["run"].replace("${{ matrix.side }}", str(side))


@pytest.fixture
def runner(tmp_path: Path) -> dict[str, str]:
    """The environment of a step: a tool path with ipitrace in it, and where summaries go."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "ipitrace": f'exec {sys.executable} -m ipitrace "$@"',
        "sudo": 'exec "$@"',
    }.items():
        tool = tools / name
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }


def carry_out(script: str, env: dict[str, str], where: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(words, cwd=where, env=env, capture_output=True, text=True, check=False)


def test_the_workflow_measures_compares_and_tells(tmp_path: Path, runner: dict[str, str]) -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["env"].keys() == SMALL.keys()
    where = tmp_path / "work"
    where.mkdir()
    steps = [script for job in workflow["jobs"].values() for script in scripts(job)]
    assert [word for step in steps for word in step.split() if word in {"run", "compare"}] == [
        *("run", "run", "compare")
    ]
    for step in steps:
        done = carry_out(step, runner | SMALL, where)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    for side in ("base", "patched"):
        assert sorted(p.name for p in (where / side).iterdir()) == ["1", "2"]
    summary = Path(runner["GITHUB_STEP_SUMMARY"]).read_text()
    assert summary.startswith("### patched (")
    assert "2 recordings" in summary
    assert "| deliver.p50:+9900%" in summary
    assert "<testsuites" in (where / "ipitrace.xml").read_text()
    broken = carry_out(steps[-1], runner | SMALL | {"COMPARE": "--fail-on nothing:+1"}, where)
    assert broken.returncode == 2
    assert "no metric 'nothing'" in broken.stderr
