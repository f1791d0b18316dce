# SPDX-License-Identifier: Apache-2.0
"""The process that fuzzes one target; started and watched by supervisor.py.

Its exit code is ENOUGH when its time or number of inputs is over. What the target raises
ends it with a traceback on stderr.
"""

import faulthandler
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from .corpus import seeds
from .engines import feed, load_instrumented
from .progress import Progress

ENOUGH: Final = 0
DEFECT: Final = 77
_CLEANING: Final = 256  # inputs between two looks at the clock


def main() -> None:
    """Fuzz: target, engine, seconds, inputs, MiB, seed and a scratch folder are the arguments."""
    name, engine, seconds, inputs, mib, seed, folder = sys.argv[1:]
    scratch = Path(folder)
    faulthandler.register(signal.SIGUSR2)  # how a hang is asked where it is
    fuzz = load_instrumented(name, engine)
    progress = Progress(scratch / "progress")
    limit_bytes = int(mib) << 20
    _limit_address_space(limit_bytes)
    until_s = time.monotonic() + float(seconds)
    most = int(inputs)
    monotonic = time.monotonic  # a target may pretend another time

    def one(data: bytes) -> None:
        progress.begin(data)
        try:
            fuzz(data)
            # At least our own, and quick to ask; but what the process that forked us had is
            # in it, too (setmax_mm_hiwater_rss() in the kernel's fs/exec.c).
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if peak_bytes > limit_bytes:
                peak_bytes = own_peak_bytes(os.getpid())
            if peak_bytes > limit_bytes:
                raise MemoryError(f"{peak_bytes >> 20} MiB resident")  # noqa: TRY301 - told alike
        except BaseException:  # noqa: BLE001 - whatever it is, it is a defect
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(DEFECT)
        progress.end()
        few = progress.finished < _CLEANING or progress.finished % 16 == 0
        if progress.finished >= most or (few and monotonic() > until_s):
            os._exit(ENOUGH)

    feed(engine, one, seeds(name), scratch, int(seed))


def own_peak_bytes(pid: int) -> int:
    """The most memory that a process had at once since its program began; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(peak[1]) << 10 if peak else 0


def _limit_address_space(limit_bytes: int) -> None:
    """Whoever reserves far more than may be used fails, even where pages are never touched."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + 2 * limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
