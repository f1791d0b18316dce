# SPDX-License-Identifier: Apache-2.0
"""Which of the watched VMs are no longer what they were, at a cost that has one limit for all.

That a process has ended, its pidfd says: one system call asks all of them (pidfd_open(2)).
That a vCPU came or went takes a look into /proc and debugfs: that is done to one VM after the
other, as far as CHECK_SHARE of the time allows.
"""

import contextlib
import os
import resource
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import Final, Generic, TypeVar

from ipitrace.vm import VirtualMachine

CHECK_SHARE: Final = 1 / 200  # of the time that passes, for all VMs together
MOST_SAVED_S: Final = 0.02

Key = TypeVar("Key", bound=Hashable)


class Presence(Generic[Key]):
    """Watches over VMs, each under a key of the caller's."""

    def __init__(self, check: Callable[[VirtualMachine], str | None]) -> None:
        """`check` says what has become of a VM, or None; see vm.still_there()."""
        self._check = check
        self._vms: dict[Key, VirtualMachine] = {}
        self._turns: deque[Key] = deque()
        self._pidfds: dict[Key, int] = {}
        self._key_of_pidfd: dict[int, Key] = {}
        self._poll = select.poll()
        self._saved_s = 0.0
        self._former_s = time.monotonic()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_pidfds = soft // 2  # what we ourselves open needs some, too

    def add(self, key: Key, vm: VirtualMachine) -> None:
        """Watch over `vm`."""
        self._vms[key] = vm
        self._turns.append(key)
        if len(self._pidfds) >= self._most_pidfds:
            return
        with contextlib.suppress(OSError):  # then its turn tells
            pidfd = os.pidfd_open(vm.pid)
            self._pidfds[key], self._key_of_pidfd[pidfd] = pidfd, key
            self._poll.register(pidfd, select.POLLIN)

    def remove(self, key: Key) -> None:
        """Watch over it no longer."""
        del self._vms[key]  # its turn is passed over when it comes
        pidfd = self._pidfds.pop(key, None)
        if pidfd is not None:
            self._poll.unregister(pidfd)
            del self._key_of_pidfd[pidfd]
            os.close(pidfd)

    def gone(self, suspects: Collection[Key] = ()) -> dict[Key, str]:
        """Those that are known now to be no longer what they were, and why.

        `suspects` are looked at now, and need not wait for their turn.
        """
        found = {
            self._key_of_pidfd[pidfd]: "its process has ended" for pidfd, _ in self._poll.poll(0)
        }
        now_s = time.monotonic()
        # Time not needed for one VM is not saved up for the day when there are a thousand.
        self._saved_s = min(self._saved_s + CHECK_SHARE * (now_s - self._former_s), MOST_SAVED_S)
        self._former_s = now_s
        for key in suspects:
            why = self._check(self._vms[key])
            if why is not None:
                found.setdefault(key, why)
        for _ in range(len(self._turns)):
            if self._saved_s <= 0:
                break
            key = self._turns.popleft()
            vm = self._vms.get(key)
            if vm is None:
                continue
            self._turns.append(key)
            began_s = time.thread_time()  # waiting for a CPU costs nobody anything
            why = self._check(vm)
            self._saved_s -= time.thread_time() - began_s
            if why is not None:
                found.setdefault(key, why)
        return found

    def close(self) -> None:
        """Let go of everything."""
        for key in tuple(self._vms):
            self.remove(key)
