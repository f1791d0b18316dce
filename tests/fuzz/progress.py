# SPDX-License-Identifier: Apache-2.0
"""What a fuzzing process is at, in memory shared with who watches it.

The input lies there before the parser gets it, so it is known whatever the parser does to
the process: a crash in C, a kill for want of memory, an endless loop.
"""

import mmap
import struct
import time
from pathlib import Path
from typing import Final

from .corpus import LONGEST_INPUT_BYTES

_HEADER: Final = struct.Struct("<QQQ")  # inputs finished, CLOCK_MONOTONIC ns of the start, length
_SIZE: Final = _HEADER.size + LONGEST_INPUT_BYTES


class Progress:
    """One process's progress; a file of fixed size, mapped by both sides."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self.finished = 0

    def begin(self, data: bytes) -> None:
        """Say that the parser gets `data` now."""
        data = data[:LONGEST_INPUT_BYTES]
        self._memory[_HEADER.size : _HEADER.size + len(data)] = data
        _HEADER.pack_into(self._memory, 0, self.finished, time.monotonic_ns(), len(data))

    def end(self) -> None:
        """Say that the parser came back."""
        self.finished += 1
        _HEADER.pack_into(self._memory, 0, self.finished, 0, 0)

    def look(self) -> tuple[int, float | None, bytes]:
        """Inputs finished; for how many seconds the one at hand has run, None between two; it."""
        finished, started_ns, length = _HEADER.unpack_from(self._memory, 0)
        running_s = (time.monotonic_ns() - started_ns) / 1e9 if started_ns else None
        return finished, running_s, self._memory[_HEADER.size : _HEADER.size + length]
