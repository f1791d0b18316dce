# SPDX-License-Identifier: Apache-2.0
"""vCPU threads that ran and were not watched, by what the programs noted of them.

VMs are looked for now and then, and a short storm is over before. The programs note every
vCPU thread that they have no slot for (Counting.strangers()).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from ipitrace.host.files import HOST
from ipitrace.watch.model import Count, Unseen

MOST_STRANGERS: Final = 1024
"""Threads that are noted between two looks, and that are followed until they end."""

Thread = tuple[int, int]
"""Process and thread."""


def _lives(thread: Thread) -> bool:
    return HOST.exists(f"/proc/{thread[0]}/task/{thread[1]}")


class Strangers:
    """Adds up what they did, and how many came and went without being watched."""

    def __init__(self, lives: Callable[[Thread], bool] = _lives) -> None:
        self._lives = lives
        self._waiting: dict[Thread, int] = {}  # sends of those that live, and may yet be watched
        self._sends = self._threads = self._gone_sends = self._overflows = 0

    def look(self, noted: Mapping[Thread, int], watched: Callable[[], Collection[int]]) -> Unseen:
        """What is new since the last call, and in all.

        Args:
            noted: sends of threads without a slot, since the last call.
            watched: answers the ids of the threads that are watched; called where it matters.
        """
        before = self._all()
        for thread, sends in noted.items():
            self._sends += sends
            self._waiting[thread] = self._waiting.get(thread, 0) + sends
        now_watched = watched() if self._waiting else ()
        for thread, sends in tuple(self._waiting.items()):
            if thread[1] in now_watched:
                del self._waiting[thread]
            elif not self._lives(thread):
                self._threads += 1
                self._gone_sends += sends
                del self._waiting[thread]
        # Those that were followed before are kept: a thread that runs is noted again.
        too_many = tuple(self._waiting)[MOST_STRANGERS:]
        for thread in too_many:
            del self._waiting[thread]
        if too_many or len(noted) >= MOST_STRANGERS:  # the kernel may have dropped some, too
            self._overflows += 1
        changes = zip(before, self._all(), strict=True)
        return Unseen(*(Count(now - then, now) for then, now in changes))

    def whole(self) -> Unseen:
        """All of it, as one interval."""
        return Unseen(*(Count(n, n) for n in self._all()))

    def _all(self) -> tuple[int, int, int, int]:
        """The totals, in the order of Unseen's fields."""
        return self._sends, self._threads, self._gone_sends, self._overflows
