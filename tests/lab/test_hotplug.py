# SPDX-License-Identifier: Apache-2.0
"""A CPU that a vCPU is pinned to goes offline in mid-run: the run ends, and says so.

`make test-lab-hotplug` runs it, on the emulated AMD host.
"""

import re

import pytest
from conftest import run_lab
from lab_result import LabResult

from ipitrace.base.errors import ExitCode

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
    # 4 and not 3: the host could measure, and did, until its CPU went. 137 would be the watchdog's.
    assert int((hotplug.output / "run.status").read_text()) == ExitCode.UNTRUSTWORTHY


def test_it_says_which_cpu(hotplug: LabResult) -> None:
    complained = (hotplug.output / "run.err").read_text()
    assert "Traceback" not in complained
    assert NAMED.search(complained), complained


def test_the_storm_before_it_is_kept(hotplug: LabResult) -> None:
    assert not hotplug.run.complete
    assert NAMED.search(hotplug.run.failure or ""), hotplug.run.failure
    row = hotplug.scenario("unicast-running")
    assert (row.status, row.repetitions, row.sent, row.delivered) == ("measured", 1, 2000, 2000)


def test_nothing_is_left(hotplug: LabResult) -> None:
    assert (hotplug.output / "left-in-tmp").read_text() == ""
