# SPDX-License-Identifier: Apache-2.0
"""Where real threads are, with and without files that stay open."""

import os
import subprocess
import sys
import threading

import pytest

from ipitrace.watch.processors import Processors


@pytest.mark.parametrize(("most_files", "open_files"), [(0, 0), (1, 1), (9, 2)])
def test_threads_that_have_ended_are_nowhere(most_files: int, open_files: int) -> None:
    words = ["-c", "import threading; threading.Thread(target=input).start(); print(flush=True)"]
    with subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))  # noqa: PTH208
        processors = Processors(process.pid, tids, most_files)
        assert processors.n_files == open_files
        try:
            assert processors.now()
            process.kill()
            process.wait()
            assert processors.now() == set()
        finally:
            processors.close()
        assert processors.n_files == 0


def test_it_follows_a_thread() -> None:
    processors = Processors(os.getpid(), [threading.get_native_id()], 1)
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            assert processors.now() == {cpu}
    finally:
        os.sched_setaffinity(0, allowed)
        processors.close()
