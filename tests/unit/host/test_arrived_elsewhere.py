# SPDX-License-Identifier: Apache-2.0
from ipitrace.words.interrupts import arrived_elsewhere


def test_only_posted_rows_on_foreign_cpus_are_told() -> None:
    interrupts = {
        "PIN": {"0": 5, "1": 0, "2": 200, "3": 0},
        "PIW": {"0": 1, "3": 2},
        "RES": {"2": 9},
    }
    assert arrived_elsewhere(interrupts, (0, 1)) == {"PIN": {2: 200}, "PIW": {3: 2}}
    assert arrived_elsewhere(interrupts, (0, 1), ["RES", "NMI"]) == {"RES": {2: 9}}


def test_a_vm_that_stays_at_home_is_not_told_of() -> None:
    assert arrived_elsewhere({"PIN": {"0": 5, "1": 7}}, (0, 1)) == {}
    assert arrived_elsewhere({}, (0, 1)) == {}
