# SPDX-License-Identifier: Apache-2.0
"""What VMs that have ended did: the largest whole, the others as a sum."""

import heapq
from collections.abc import Iterable

from ipitrace.watch.model import MOST_ENDED, EndedRest, EndedVm


def largest(ended: Iterable[EndedVm]) -> tuple[tuple[EndedVm, ...], EndedRest]:
    """The MOST_ENDED that had the most IPIs, those first, and the others' sum."""
    every = tuple(ended)
    kept = heapq.nlargest(MOST_ENDED, every, key=lambda one: one.vm.ipis.total)
    ipis = sum(one.vm.ipis.total for one in every) - sum(one.vm.ipis.total for one in kept)
    return tuple(kept), EndedRest(len(every) - len(kept), ipis)


class Ended:
    """All VMs that have ended, in memory that has an end."""

    def __init__(self) -> None:
        self.kept: tuple[EndedVm, ...] = ()
        self.rest = EndedRest(0, 0)

    def add(self, ended: Iterable[EndedVm]) -> None:
        """These have ended, too."""
        self.kept, more = largest((*self.kept, *ended))
        self.rest = EndedRest(self.rest.vms + more.vms, self.rest.ipis + more.ipis)
