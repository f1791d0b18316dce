# SPDX-License-Identifier: Apache-2.0
"""A CPU that a vCPU is pinned to goes offline in mid-run: the run ends, and says so.

`make test-lab-hotplug` runs it, on the emulated AMD host.
"""

import re

import pytest
from conftest import run_lab
from lab_result import LabResult

from ipitrace.errors import ExitCode

pytestmark = pytest.mark.lab("hotplug")

NAMED = re.compile(r"\bCPU 1\b")  # and no vCPU


@pytest.fixture(scope="module")
def hotplug() -> LabResult:
    return run_lab("hotplug")


def test_the_cpu_was_taken_offline_while_it_measured(hotplug: LabResult) -> None:
    assert (hotplug.output / "online-in-mid-run").read_text() == "0\n"


def test_the_run_ended_by_itself_and_its_code_says_that_it_is_worth_nothing(
    hotplug: LabResult,
) -> None:
    # 137 would be the watchdog's.
    status = int((hotplug.output / "run.status").read_text())
    assert status in {ExitCode.ENVIRONMENT, ExitCode.UNTRUSTWORTHY}


def test_it_says_which_cpu(hotplug: LabResult) -> None:
    complained = (hotplug.output / "run.err").read_text()
    assert "Traceback" not in complained
    assert NAMED.search(complained), complained


def test_what_was_measured_is_kept_and_says_it_too(hotplug: LabResult) -> None:
    reasons = [*hotplug.run.untrustworthy, hotplug.run.failure or ""]
    assert any(map(NAMED.search, reasons)), reasons


def test_nothing_is_left(hotplug: LabResult) -> None:
    assert (hotplug.output / "left-in-tmp").read_text() == ""
