# SPDX-License-Identifier: Apache-2.0
"""Cells and heads become pairs, kinds and sums."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ipitrace.abi.watch import WATCH_CELL, WATCH_HEAD, WATCH_KEY, WATCH_TARGET_UNKNOWN, SentBy, What
from ipitrace.tracer.counting import Counts
from ipitrace.watch.evidence import ENOUGH, ExitEvidence
from ipitrace.watch.model import Count
from ipitrace.watch.traffic import Traffic, has_exits
from ipitrace.watch.traffic import traffic as traffic_of_vms

N_CELLS = 16
VMX, SVM = 1, 2


def key(what: What, **fields: int) -> int:
    value = what << WATCH_KEY["WHAT"][0]
    for name, field in fields.items():
        value |= field << WATCH_KEY[name.upper()][0]
    return value


def ipi(target: int, vector: int = 0xF0, **fields: int) -> int:
    return key(What.IPI, target=target, vector=vector, **fields)


@dataclass(frozen=True)
class Tables:
    """What the programs write."""

    heads: NDArray[np.void]
    cells: NDArray[np.void]


def counts(*slots: dict[int, int], **heads: int) -> Tables:
    cells = np.zeros((len(slots), N_CELLS), WATCH_CELL)
    for slot, found in enumerate(slots):
        for at, (cell_key, count) in enumerate(found.items()):
            cells[slot, at] = (cell_key, count)
    head = np.zeros(len(slots), WATCH_HEAD)
    for name, value in heads.items():
        head[name][0] = value
    return Tables(head, cells)


def read(before: Tables, after: Tables) -> Counts:
    slot, cell = np.nonzero(after.cells["key"])
    cells, former = after.cells[slot, cell], before.cells["count"][slot, cell]
    return Counts(before.heads, after.heads, slot, cells["key"], former, cells["count"])


def traffic(before: Tables, after: Tables, *, exits_silent: bool = False) -> Traffic:
    """Of one VM that has all slots."""
    vcpus = list(range(len(after.heads)))
    (found,) = traffic_of_vms(read(before, after), [vcpus], exits_silent=exits_silent)
    return found


def since_zero(*slots: dict[int, int], exits_silent: bool = False, **heads: int) -> Traffic:
    return traffic(counts(*({} for _ in slots)), counts(*slots, **heads), exits_silent=exits_silent)


def test_pairs_are_named_and_ordered_by_what_happened_lately() -> None:
    before = counts({ipi(1): 100, ipi(2): 5}, {})
    after = counts({ipi(1): 101, ipi(2): 25}, {ipi(0, mode=4): 3})
    pairs, rest = traffic(before, after).pairs(2)
    assert [(p.sender, p.target, p.mode, p.ipis) for p in pairs] == [
        (0, 2, "fixed", Count(20, 25)),
        (1, 0, "nmi", Count(3, 3)),
    ]
    assert (rest.pairs, rest.ipis) == (1, Count(1, 101))
    assert traffic(before, after).ipis() == Count(24, 129)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"isa": VMX, "reason": 32}, "msr-exit"),
        ({"isa": VMX, "reason": 56}, "apic-write"),
        ({"isa": VMX, "reason": 49}, "mmio"),
        ({"isa": SVM, "reason": 0x7C}, "msr-exit"),
        ({"isa": SVM, "reason": 0x401, "sent_by": SentBy.AVIC, "cause": 0}, "avic-invalid-type"),
        ({"isa": SVM, "reason": 0x401, "sent_by": SentBy.AVIC, "cause": 1}, "avic-not-running"),
        ({"isa": SVM, "reason": 0x401, "sent_by": SentBy.AVIC, "cause": 2}, "avic-invalid-target"),
        ({"isa": SVM, "reason": 0x401, "sent_by": SentBy.AVIC, "cause": 7}, "avic-incomplete"),
        ({"isa": SVM, "reason": 0x401}, "avic-incomplete"),
        ({"isa": SVM, "reason": 0x402}, "avic-unaccelerated"),
        ({"isa": SVM, "reason": 0x403}, "vmgexit"),
        ({"isa": VMX, "reason": 18, "sent_by": SentBy.HYPERCALL}, "pv-hypercall"),
        ({"isa": VMX, "reason": 18, "sent_by": SentBy.HV}, "hv-hypercall"),
        ({"isa": SVM, "reason": 0x81, "sent_by": SentBy.HV}, "hv-hypercall"),
        ({"sent_by": SentBy.HV}, "hv-hypercall"),
        ({"isa": SVM, "reason": 0xFFFF}, "unknown"),
        ({"isa": VMX, "reason": 12}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_exit_proves_the_path(fields: dict[str, int], path: str) -> None:
    an_exit = key(What.EXIT, isa=VMX) | 32
    ((pair,), _) = since_zero({ipi(1, **fields): 1, an_exit: 1}).pairs(0)
    assert pair.path == path


def test_a_send_without_an_exit_is_emulated_only_where_kvm_exit_never_fires() -> None:
    (silent,), _ = since_zero({ipi(1): 1}, exits_silent=True).pairs(0)
    (other,), _ = since_zero({ipi(1): 1}).pairs(0)
    assert (silent.path, other.path) == ("emulated", "unknown")


def test_xen_hypercalls_are_added_up_over_vcpus() -> None:
    found = since_zero({}, {}, xen_hypercalls=3)
    assert found.head("xen_hypercalls") == Count(3, 3)


def test_that_kvm_exit_never_fires_takes_many_events_without_it() -> None:
    """Those of one send whose exit began before it was watched are no evidence."""
    vmx, neither = ExitEvidence(VMX), ExitEvidence(0)
    assert (vmx.silent, neither.silent) == (False, True)
    vmx.note(ENOUGH - 1)
    assert not vmx.silent
    vmx.note(ENOUGH)
    vmx.note(3)  # a VM has ended, and what it did is forgotten
    assert vmx.silent
    for evidence in (vmx, neither):
        evidence.fired = has_exits(read(counts({}), counts({key(What.EXIT, isa=VMX) | 32: 1})))
        assert not evidence.silent
    assert not has_exits(read(counts({}), counts({ipi(1): 1})))


def test_an_unknown_target_is_none_and_nobodys() -> None:
    found = since_zero({ipi(WATCH_TARGET_UNKNOWN, sent_by=SentBy.AVIC): 4}, {})
    ((pair,), _) = found.pairs(0)
    assert pair.target is None
    assert [vcpu.received.total for vcpu in found.vcpus()] == [0, 0]


def test_exits_and_others_are_added_up_over_vcpus() -> None:
    timer = key(What.OTHER, target=1, vector=0xEC)
    halt, write = (key(What.EXIT, isa=VMX) | reason for reason in (12, 32))
    failed = key(What.EXIT, isa=VMX) | 0x80000021
    found = since_zero({timer: 2, halt: 1, write: 9}, {timer: 3, write: 1, failed: 1})
    assert [(o.vector, o.interrupts.total) for o in found.others()] == [(0xEC, 5)]
    assert [(e.reason, e.exits.total) for e in found.exits()] == [
        ("MSR_WRITE", 10),
        ("HLT", 1),
        ("INVALID_STATE+failed-entry", 1),
    ]


def test_what_found_no_cell_is_an_ipi_all_the_same() -> None:
    after = counts({ipi(1): 2})
    after.heads["unplaced"][0, What.IPI - 1] = 5
    after.heads["unplaced"][0, What.EXIT - 1] = 1
    found = traffic(counts({}), after)
    assert found.ipis() == Count(7, 7)
    assert found.unplaced() == Count(6, 6)


def test_cpus_are_those_moved_to_and_the_last_one_before() -> None:
    def on(cpu: int) -> int:
        return key(What.CPU) | cpu

    before = counts({on(0): 1, on(3): 1}, cpu=3 + 1)
    after = counts({on(0): 1, on(3): 1, on(7): 1}, cpu=7 + 1)
    assert traffic(before, after).cpus() == {3, 7}


def test_vms_are_told_apart() -> None:
    """Added up together, each has what it has when it is added up alone."""
    timer, fires = key(What.OTHER, target=0, vector=0xEC), key(What.EXIT, isa=VMX) | 32
    slots: tuple[dict[int, int], ...] = (
        {ipi(1): 5, timer: 2, key(What.CPU) | 3: 1},
        {ipi(0): 7},
        {ipi(1): 1, ipi(2, vector=0xF1): 9, fires: 4},
        {},
        {ipi(0): 2},
    )
    of_vms = [[0, 1], [], [0, 5, 2]]
    whole = counts(*slots, wakeups=3, sends=4)
    nothing = counts(*({} for _ in slots))
    together = traffic_of_vms(read(nothing, whole), of_vms, exits_silent=False)
    first = 0
    for found, vcpus in zip(together, of_vms, strict=True):
        here = slice(first, first + len(vcpus))
        first = here.stop
        before, after = (Tables(t.heads[here], t.cells[here]) for t in (nothing, whole))
        (alone,) = traffic_of_vms(read(before, after), [vcpus], exits_silent=False)
        for view in ("ipis", "kinds", "others", "exits", "vcpus", "unplaced", "cpus"):
            assert getattr(found, view)() == getattr(alone, view)(), view
        assert found.pairs(1) == alone.pairs(1)
        assert found.head("sends") == alone.head("sends")
    assert [found.ipis().total for found in together] == [12, 0, 12]
    assert [{pair.path for pair in found.pairs(0)[0]} for found in together] == [
        {"unknown"},
        set(),
        {"unknown"},
    ]


an_ipi = st.tuples(
    st.integers(0, 3), st.integers(0, 3), st.integers(250, 251), st.integers(1, 1 << 40)
)


@settings(deadline=None)
@given(st.lists(an_ipi, max_size=8), st.integers(1, 5))
def test_every_view_has_the_same_sum(found_ipis: list[tuple[int, int, int, int]], top: int) -> None:
    slots: list[dict[int, int]] = [{} for _ in range(4)]
    for sender, target, vector, count in found_ipis:
        slots[sender][ipi(target, vector)] = count
    found = since_zero(*slots)
    total = sum(sum(slot.values()) for slot in slots)
    pairs, rest = found.pairs(top)
    assert len(pairs) <= top
    assert sum(p.ipis.total for p in pairs) + rest.ipis.total == total
    assert sum(k.ipis.total for k in found.kinds()) == total
    assert sum(v.sent.total for v in found.vcpus()) == total
    assert sum(v.received.total for v in found.vcpus()) == total
    assert found.ipis() == Count(total, total)
