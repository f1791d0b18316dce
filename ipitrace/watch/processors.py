# SPDX-License-Identifier: Apache-2.0
"""On which CPUs watched threads are: proc_pid_stat(5), field 39.

It is read of every thread at every interval, since nothing tells which have moved. To open the
file takes twice as long as to read it, so it stays open where there are descriptors to spare.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

_PROCESSOR: Final = 36  # from the state on
_STAT_BYTES: Final = 4096


class Processors:
    """Of the threads of one VM."""

    def __init__(self, pid: int, tids: Sequence[int], most_files: int) -> None:
        """Keep at most `most_files` open until close()."""
        self._paths = [f"/proc/{pid}/task/{tid}/stat" for tid in tids]
        self._files: list[int] = []
        for path in self._paths[:most_files]:
            try:
                self._files.append(_open(path))
            except OSError:  # it has ended, or there are too few descriptors after all
                break

    @property
    def n_files(self) -> int:
        """How many are open."""
        return len(self._files)

    def now(self) -> set[int]:
        """The CPUs that the threads run on, or ran on last."""
        found: set[int] = set()
        for file in self._files:
            with contextlib.suppress(OSError):  # it has ended
                found.add(_processor(file))
        for path in self._paths[len(self._files) :]:
            with contextlib.suppress(OSError):
                file = _open(path)
                try:
                    found.add(_processor(file))
                finally:
                    os.close(file)
        return found

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            os.close(file)
        self._files.clear()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _processor(file: int) -> int:
    stat = os.pread(file, _STAT_BYTES, 0)
    # The name, in parentheses, may hold anything.
    return int(stat[stat.rindex(b")") + 1 :].split(None, _PROCESSOR + 1)[_PROCESSOR])
