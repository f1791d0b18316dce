# SPDX-License-Identifier: Apache-2.0
"""A VM is killed in mid-storm while somebody looks at it. (run --vm: tests/live/test_vm_dies.py)"""

import json
from typing import Any

import pytest
from guests import micro_guest
from place import Place, assert_told

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live


def test_watch_of_all_goes_on_with_the_others(place: Place) -> None:
    with (
        micro_guest("unicast-blocked") as first,
        micro_guest("unicast-blocked") as second,
        place.starts("watch", "--interval", 0.2, "--json", "--duration", 20) as program,
    ):
        assert program.process.stdout is not None
        lines = map(json.loads, program.process.stdout)
        interval: dict[str, Any] = next(lines)
        while len(vms(interval)) < 2 or not all(ipis(interval, g.pid) for g in (first, second)):
            interval = next(lines)
        first.kill()
        told = list(interval["ended"])
        while first.pid in vms(interval):
            interval = next(lines)
            told += interval["ended"]
        before = ipis(interval, second.pid)
        for _ in range(5):
            interval = next(lines)
        assert ipis(interval, second.pid) > before
        assert interval["departed"] > 0
        assert [f"pid {first.pid}" in line for line in told] == [True]
        program.process.terminate()
        assert program.finish() == ExitCode.INTERRUPTED, program.complained


def test_watch_of_the_one_ends_and_says_why(place: Place) -> None:
    with (
        micro_guest("broadcast", 4) as guest,
        place.starts("watch", "--vm", f"pid:{guest.pid}", "--interval", 0.2, "--json") as program,
    ):
        assert program.process.stdout is not None
        program.process.stdout.readline()
        guest.kill()
        program.finish(60)
    assert_told(program, ExitCode.UNTRUSTWORTHY)


def vms(interval: dict[str, Any]) -> set[int]:
    return {vm["pid"] for vm in interval["vms"]}


def ipis(interval: dict[str, Any], pid: int) -> int:
    return sum(vm["ipis"]["total"] for vm in interval["vms"] if vm["pid"] == pid)
