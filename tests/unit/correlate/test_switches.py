# SPDX-License-Identifier: Apache-2.0
"""Switches of vCPU threads that no event tells of."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.switches import Switches, count_switches
from ipitrace.words.events import Kind

N_VCPUS = 3


def switches(*of_vcpus: int) -> np.ndarray:
    """Each of these vCPUs' threads leaves a CPU or comes to one, in turn, leaving first."""
    events = np.zeros(len(of_vcpus), HOST_EVENT)
    events["kind"] = Kind.SCHED_SWITCH
    events["vcpu"] = of_vcpus
    events["ts_ns"] = np.arange(len(of_vcpus)) * 10
    for vcpu in set(of_vcpus):
        mine = events["vcpu"] == vcpu
        events["detail"][mine] = np.arange(np.count_nonzero(mine)) % 2
    return events


def test_no_events() -> None:
    assert count_switches(np.empty(0, HOST_EVENT)) == Switches(0, 0)


def test_other_kinds_are_no_switches() -> None:
    events = switches(0, 0, 0, 0)
    events["kind"][1:3] = Kind.KVM_EOI, Kind.KVM_EXIT
    assert count_switches(events) == Switches(2, 0)


@given(
    of_vcpus=st.lists(st.integers(0, N_VCPUS - 1), max_size=60),
    lost=st.sets(st.integers(0, 59)),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_lone_gap_is_found(of_vcpus: list[int], lost: set[int], seed: int) -> None:
    whole = switches(*of_vcpus)
    keep = np.array([at not in lost for at in range(len(whole))], np.bool_)
    # between two events of one thread an odd number of lost ones shows, and shows as one
    shown = 0
    for vcpu in range(N_VCPUS):
        kept_at = np.flatnonzero(keep[whole["vcpu"] == vcpu])
        shown += int(np.count_nonzero(np.diff(kept_at) % 2 == 0))
    kept = np.random.default_rng(seed).permutation(whole[keep])
    assert count_switches(kept) == Switches(len(kept), shown)


def test_they_add_up() -> None:
    assert Switches(3, 1) + Switches(4, 2) == Switches(7, 3)
