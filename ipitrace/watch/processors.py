# SPDX-License-Identifier: Apache-2.0
"""The CPUs of watched threads: proc_pid_stat(5), field 39.

The file of every thread is read at every interval, because nothing reports which have moved. To
open a file takes twice as long as to read it. It stays open if descriptors are available.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

_PROCESSOR: Final = 36  # counted from the state
_STAT_BYTES: Final = 4096


class Processors:
    """The CPUs of the threads of one VM."""

    def __init__(self, pid: int, tids: Sequence[int], most_files: int) -> None:
        """Keep at most `most_files` open until close()."""
        self._paths = [f"/proc/{pid}/task/{tid}/stat" for tid in tids]
        self._files: list[int] = []
        for path in self._paths[:most_files]:
            try:
                self._files.append(_open(path))
            except OSError:  # the thread has ended, or no descriptor is available
                break

    @property
    def n_files(self) -> int:
        """The number of open files."""
        return len(self._files)

    def now(self) -> set[int]:
        """The CPUs on which the threads run, or ran last."""
        found: set[int] = set()
        for file in self._files:
            with contextlib.suppress(OSError):  # the thread has ended
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
        """Close the files."""
        for file in self._files:
            os.close(file)
        self._files.clear()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _processor(file: int) -> int:
    stat = os.pread(file, _STAT_BYTES, 0)
    # The name, in parentheses, may contain any character.
    return int(stat[stat.rindex(b")") + 1 :].split(None, _PROCESSOR + 1)[_PROCESSOR])
