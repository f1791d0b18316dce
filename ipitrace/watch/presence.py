# SPDX-License-Identifier: Apache-2.0
"""Detects watched VMs that have ended or changed, with one limit of the cost for all VMs.

A process that has ended is reported by its pidfd: one system call polls all of them
(pidfd_open(2)). A change of the vCPUs is found in /proc and debugfs: the VMs are checked in
turn, within CHECK_SHARE of the time.
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
    """Checks VMs, each identified by a key of the caller."""

    def __init__(self, check: Callable[[VirtualMachine], str | None]) -> None:
        """`check` returns how a VM has changed, or None; see vm.still_there()."""
        self._check = check
        self._vms: dict[Key, VirtualMachine] = {}
        self._turns: deque[Key] = deque()
        self._pidfds: dict[Key, int] = {}
        self._key_of_pidfd: dict[int, Key] = {}
        self._poll = select.poll()
        self._saved_s = 0.0
        self._former_s = time.monotonic()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_pidfds = soft // 2  # ipitrace itself needs some, too

    def add(self, key: Key, vm: VirtualMachine) -> None:
        """Begin to check `vm`."""
        self._vms[key] = vm
        self._turns.append(key)
        if len(self._pidfds) >= self._most_pidfds:
            return
        with contextlib.suppress(OSError):  # then the check in its turn finds the end
            pidfd = os.pidfd_open(vm.pid)
            self._pidfds[key], self._key_of_pidfd[pidfd] = pidfd, key
            self._poll.register(pidfd, select.POLLIN)

    def remove(self, key: Key) -> None:
        """Stop checking it."""
        del self._vms[key]  # gone() skips its turn
        pidfd = self._pidfds.pop(key, None)
        if pidfd is not None:
            self._poll.unregister(pidfd)
            del self._key_of_pidfd[pidfd]
            os.close(pidfd)

    def gone(self, suspects: Collection[Key] = ()) -> dict[Key, str]:
        """The VMs that are known to have ended or changed, with the reason.

        `suspects` are checked now, before their turn.
        """
        found = {
            self._key_of_pidfd[pidfd]: "its process has ended" for pidfd, _ in self._poll.poll(0)
        }
        now_s = time.monotonic()
        # The unused time is limited: it must not add up to a long check of many VMs.
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
            began_s = time.thread_time()  # without the time waiting for a CPU
            why = self._check(vm)
            self._saved_s -= time.thread_time() - began_s
            if why is not None:
                found.setdefault(key, why)
        return found

    def close(self) -> None:
        """Release all resources."""
        for key in tuple(self._vms):
            self.remove(key)
