# SPDX-License-Identifier: Apache-2.0
"""Counts of VMs that have ended: in full for the largest ones, as a sum for the others."""

import heapq
from collections.abc import Iterable

from ipitrace.watch.model import MOST_ENDED, EndedRest, EndedVm


def largest(ended: Iterable[EndedVm]) -> tuple[tuple[EndedVm, ...], EndedRest]:
    """The MOST_ENDED VMs with the most IPIs, largest first, and the sum of the others."""
    every = tuple(ended)
    kept = heapq.nlargest(MOST_ENDED, every, key=lambda one: one.vm.ipis.total)
    ipis = sum(one.vm.ipis.total for one in every) - sum(one.vm.ipis.total for one in kept)
    return tuple(kept), EndedRest(len(every) - len(kept), ipis)


class Ended:
    """All VMs that have ended, in bounded memory."""

    def __init__(self) -> None:
        self.kept: tuple[EndedVm, ...] = ()
        self.rest = EndedRest(0, 0)

    def add(self, ended: Iterable[EndedVm]) -> None:
        """Add VMs that have ended."""
        self.kept, more = largest((*self.kept, *ended))
        self.rest = EndedRest(self.rest.vms + more.vms, self.rest.ipis + more.ipis)
