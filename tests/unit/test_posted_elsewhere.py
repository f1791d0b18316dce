# SPDX-License-Identifier: Apache-2.0
from ipitrace.summary.interrupts import posted_elsewhere


def test_only_posted_rows_on_foreign_cpus_are_told() -> None:
    interrupts = {
        "PIN": {"0": 5, "1": 0, "2": 200, "3": 0},
        "PIW": {"0": 1, "3": 2},
        "RES": {"2": 9},
    }
    assert posted_elsewhere(interrupts, (0, 1)) == {"PIN": {2: 200}, "PIW": {3: 2}}


def test_a_vm_that_stays_at_home_is_not_told_of() -> None:
    assert posted_elsewhere({"PIN": {"0": 5, "1": 7}}, (0, 1)) == {}
    assert posted_elsewhere({}, (0, 1)) == {}
