# SPDX-License-Identifier: Apache-2.0
"""Two at once: on two VMs, into one place, and two that watch one VM."""

import json
from typing import Any

import pytest
from guests import micro_guest
from place import Place, assert_told, whole

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live

A_RUN = ("--scenario", "unicast-running", "--count", 6000, "--repeat", 3)


def test_two_runs_are_whole_and_each_says_that_it_was_not_alone(place: Place) -> None:
    with (
        place.starts("run", *A_RUN, "-o", "one") as one,
        place.starts("run", *A_RUN, "-o", "two") as two,
    ):
        for program in (one, two):
            assert program.finish() in {ExitCode.OK, ExitCode.UNTRUSTWORTHY}, program.complained
            assert "Traceback" not in program.complained
    for name, program, other in (("one", one, two), ("two", two, one)):
        run = whole(place.cwd / name)
        assert run.complete
        (row,) = run.scenarios
        assert (row.sent, row.delivered) == (6000, 6000)
        # Both VMs' vCPUs want the same CPUs: their cycles cannot be called good in silence.
        runs = [found.says for found in run.disturbances or () if found.kind == "run"]
        assert any(f"(pid {other.process.pid})" in says for says in runs), (name, runs)
        assert (program.process.returncode == ExitCode.UNTRUSTWORTHY) == bool(run.untrustworthy)


def test_two_runs_into_one_place_leave_one_of_them_whole(place: Place) -> None:
    with (
        place.starts("run", *A_RUN, "-o", "rec") as one,
        place.starts("run", *A_RUN, "-o", "rec") as two,
    ):
        codes = [one.finish(), two.finish()]
    assert whole(place.cwd / "rec").complete
    assert ExitCode.OK in codes or ExitCode.UNTRUSTWORTHY in codes
    for program in (one, two):
        if program.process.returncode not in {ExitCode.OK, ExitCode.UNTRUSTWORTHY}:
            assert_told(program, ExitCode.USAGE, ExitCode.ENVIRONMENT)
    for name in place.names() - {"rec"}:  # the other, if it was done after all
        assert name in one.complained + two.complained
        assert whole(place.cwd / name).complete


def test_two_that_watch_one_vm_see_the_same(place: Place) -> None:
    with micro_guest("unicast-blocked") as guest:
        words = ("watch", "--vm", f"pid:{guest.pid}", "--interval", 0.2, "--json")
        with (
            place.starts(*words, "--duration", 5) as one,
            place.starts(*words, "--duration", 5) as two,
        ):
            for program in (one, two):
                assert program.finish() == ExitCode.OK, program.complained
    for program in (one, two):
        (vm,) = json.loads(program.said.splitlines()[-1])["vms"]
        assert vm["missed"]["total"] == vm["unplaced"]["total"] == 0
    assert rate(one.said) == pytest.approx(rate(two.said), rel=0.2)


def rate(said: str) -> float:
    """IPIs a second between the first and the last interval."""
    intervals: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines()]
    first, last = intervals[0], intervals[-1]
    seen = last["vms"][0]["ipis"]["total"] - first["vms"][0]["ipis"]["total"]
    assert seen > 0
    return float(seen / (last["elapsed_s"] - first["elapsed_s"]))
