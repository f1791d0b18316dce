# SPDX-License-Identifier: Apache-2.0
"""tracefs is in another's use: ipitrace works beside it, says so, and changes nothing of theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from host_state import IPITRACE
from place import Place, whole

pytestmark = pytest.mark.live

BUSY = (sys.executable, str(Path(__file__).with_name("busy_tracefs.py")))


def beside(place: Place, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [*BUSY, *IPITRACE, *map(str, arguments)],
        cwd=place.cwd,
        env={**os.environ, "TMPDIR": str(place.temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def assert_theirs_is_as_it_was(told: dict[str, Any]) -> None:
    assert told["after"] == told["before"]
    assert told["their_events"] > 0
    assert told["their_program_saw"] > 0


def test_run(place: Place) -> None:
    words = ("run", "--scenario", "unicast-running", "--count", 200, "--repeat", 2, "-o", "rec")
    told = beside(place, *words)
    assert told["code"] == 0, told["complained"]
    run = whole(place.cwd / "rec")
    assert run.complete
    instances = run.host.neighbours.ftrace_kvm_instances
    assert any("ipitrace-test-events" in name for name in instances)
    assert run.host.neighbours.bpf_tracing_programs >= 1
    assert_theirs_is_as_it_was(told)


def test_watch(place: Place) -> None:
    told = beside(place, "watch", "--interval", 0.2, "--duration", 1, "--json")
    assert told["code"] == 0, told["complained"]
    assert_theirs_is_as_it_was(told)


def test_doctor_says_that_another_traces(place: Place) -> None:
    told = beside(place, "doctor")
    assert told["code"] == 0, told["complained"]
    assert_theirs_is_as_it_was(told)
