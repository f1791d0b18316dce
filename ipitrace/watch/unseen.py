# SPDX-License-Identifier: Apache-2.0
"""vCPU threads that ran and found no free slot, as noted by the BPF programs.

So many VMs may start between two searches that there are not enough slots for their threads. The
programs note the others (Counting.strangers()).
"""

from collections.abc import Callable, Collection

from ipitrace.host.files import HOST
from ipitrace.tracer.counting import Noted
from ipitrace.watch.model import MOST_STRANGERS, Count, Unseen

Thread = tuple[int, int]
"""Process and thread."""


def _lives(thread: Thread) -> bool:
    return HOST.exists(f"/proc/{thread[0]}/task/{thread[1]}")


class Strangers:
    """Counts their sends, and the threads that started and ended without being watched."""

    def __init__(self, lives: Callable[[Thread], bool] = _lives) -> None:
        self._lives = lives
        self._waiting: dict[Thread, int] = {}  # sends of threads that live and may be watched later
        self._sends = self._threads = self._gone_sends = self._overflows = 0
        self._n_noted = 0

    def update(self, noted: Noted, watched: Callable[[], Collection[int]]) -> Unseen:
        """The changes since the last call, and the totals.

        Args:
            noted: the result of Counting.strangers().
            watched: returns the ids of the watched threads; called only if needed.
        """
        before = self._all()
        self._sends = noted.sends
        for thread, sends in noted.of_thread.items():
            self._waiting[thread] = self._waiting.get(thread, 0) + sends
        now_watched = watched() if self._waiting else ()
        for thread, sends in tuple(self._waiting.items()):
            if thread[1] in now_watched:
                del self._waiting[thread]
            elif not self._lives(thread):
                self._threads += 1
                self._gone_sends += sends
                del self._waiting[thread]
        # The threads followed first are kept: a thread that runs is noted again.
        too_many = tuple(self._waiting)[MOST_STRANGERS:]
        for thread in too_many:
            del self._waiting[thread]
        self._n_noted += len(noted.of_thread)
        if too_many or noted.threads > self._n_noted:  # the kernel has dropped some
            self._overflows += 1
        self._n_noted = max(self._n_noted, noted.threads)
        changes = zip(before, self._all(), strict=True)
        return Unseen(*(Count(now - then, now) for then, now in changes))

    def whole(self) -> Unseen:
        """The totals, as one interval."""
        return Unseen(*(Count(n, n) for n in self._all()))

    def _all(self) -> tuple[int, int, int, int]:
        """The totals, in the order of Unseen's fields."""
        return self._sends, self._threads, self._gone_sends, self._overflows
