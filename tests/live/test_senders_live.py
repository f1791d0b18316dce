# SPDX-License-Identifier: Apache-2.0
"""`guest senders` on this machine: known senders are found, and nothing is left behind."""

import csv
import ctypes
import hashlib
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import ipi
from host_state import Watched, watched

from ipitrace.base.errors import HostError
from ipitrace.senders.counting import count_senders
from ipitrace.senders.inside import INSTANCE
from ipitrace.senders.model import QUEUED, TRACEPOINTS, Senders
from ipitrace.storm.transport.local import LocalShell

pytestmark = pytest.mark.live("root")

SENDERS = ("guest", "senders", "--vm", "local")
N_CALLS = 2000
COUNTED_S = 6.0
BEGIN_S = 2.0  # well after the instance is made, also on a busy machine
# asm/unistd_64.h; enum membarrier_cmd in uapi/linux/membarrier.h
SYS_MEMBARRIER, PRIVATE_EXPEDITED, REGISTER_PRIVATE_EXPEDITED = 324, 1 << 3, 1 << 4

IN_TRACEFS = """
import sys
from ipitrace.tracer.tracefs import ensure_tracefs
tracefs, why = ensure_tracefs()
assert tracefs is not None, why
"""


def in_tracefs(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", IN_TRACEFS + program], capture_output=True, text=True, check=True
    )
    return done.stdout


def instances() -> set[str]:
    """The instances of this command, of all processes."""
    said = in_tracefs("print(*(path.name for path in (tracefs / 'instances').iterdir()))")
    return {name for name in said.split() if name.startswith(INSTANCE)}


@pytest.fixture(autouse=True)
def _tracepoints() -> None:
    have = in_tracefs("print(*(path.name for path in (tracefs / 'events').glob('*/*')))").split()
    if not {one.event for one in TRACEPOINTS} <= set(have):
        pytest.skip("the kernel lacks a tracepoint")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")


@contextmanager
def running_on_another_cpu() -> Iterator[None]:
    """A thread of this process runs on one CPU in user space all the time, this one on another."""
    cpus = sorted(os.sched_getaffinity(0))
    end = threading.Event()

    def spin() -> None:
        os.sched_setaffinity(0, {cpus[1]})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while not end.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000)  # releases the interpreter's lock

    spinner = threading.Thread(target=spin)
    spinner.start()
    os.sched_setaffinity(0, {cpus[0]})
    try:
        time.sleep(0.1)
        yield
    finally:
        end.set()
        spinner.join()
        os.sched_setaffinity(0, set(cpus))


def call_membarrier() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(SYS_MEMBARRIER, REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0
    for _ in range(N_CALLS):
        assert libc.syscall(SYS_MEMBARRIER, PRIVATE_EXPEDITED, 0, 0) == 0


def call_munmap() -> None:
    for _ in range(N_CALLS):
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page[0] = 1


def counted_while(cause: Callable[[], None]) -> Senders:
    found: list[Senders] = []
    counting = threading.Thread(target=lambda: found.append(count_senders(LocalShell(), COUNTED_S)))
    counting.start()
    time.sleep(BEGIN_S)
    with running_on_another_cpu():
        cause()
    assert counting.is_alive(), "the calls took longer than the counting"
    counting.join()
    (senders,) = found
    return senders


def queued(senders: Senders, callback: str) -> int:
    (source,) = (source for source in senders.sources if source.tracepoint == QUEUED)
    return sum(sender.count for sender in source.senders if sender.callback == callback)


def test_every_expedited_membarrier_is_counted_by_its_callback() -> None:
    """One other CPU runs the process all the time, so that each call sends it one IPI."""
    senders = counted_while(call_membarrier)
    assert senders.lost_records == 0
    assert 0.9 * N_CALLS <= queued(senders, "ipi_mb") <= 1.1 * N_CALLS
    assert senders.duration_s == pytest.approx(COUNTED_S, abs=BEGIN_S)


def test_munmap_in_a_process_of_two_cpus_flushes_the_tlb() -> None:
    without = queued(count_senders(LocalShell(), 1.0), "flush_tlb_func")
    assert without < 0.5 * N_CALLS, "the machine is too busy"
    assert queued(counted_while(call_munmap), "flush_tlb_func") >= 0.9 * N_CALLS


def test_the_formats_agree() -> None:
    done = ipi(*SENDERS, "--duration", 1, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["kernel"] == os.uname().release
    assert [source["tracepoint"] for source in document["sources"]] == [
        one.name for one in TRACEPOINTS
    ]
    for source in document["sources"]:
        assert source["count"] == sum(sender["count"] for sender in source["senders"])
        shares = [sender["share"] for sender in source["senders"]]
        assert not shares or sum(shares) == pytest.approx(1)
    rows = list(
        csv.DictReader(io.StringIO(ipi(*SENDERS, "--duration", 1, "--format", "csv").stdout))
    )
    assert {row["tracepoint"] for row in rows} <= {one.name for one in TRACEPOINTS}
    assert all(int(row["count"]) > 0 for row in rows)
    table = ipi(*SENDERS, "--duration", 1).stdout
    assert all(one.name in table for one in TRACEPOINTS)


def test_two_at_once_do_not_meet() -> None:
    before = instances()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "ipitrace", *SENDERS, "--duration", "3", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for one in running:
        said, complained = one.communicate(timeout=60)
        assert one.returncode == 0, complained
        assert json.loads(said)["duration_s"] > 0
    assert instances() <= before


def until_counting(program: Watched, before: set[str]) -> None:
    deadline_s = time.monotonic() + 30
    while not instances() - before:
        assert program.process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interruption_leaves_no_instance(number: signal.Signals, tmp_path: Path) -> None:
    before = instances()
    with watched(*SENDERS, "--duration", 60, cwd=tmp_path) as program:
        until_counting(program, before)
        program.process.send_signal(number)
        program.finish(30)
        deadline_s = time.monotonic() + 10
        while instances() - before and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert not instances() - before
        program.assert_gone()


def test_an_instance_that_nobody_uses_is_removed_and_one_in_use_is_not() -> None:
    unused = f"{INSTANCE}1"
    in_tracefs(f"(tracefs / 'instances' / '{unused}').mkdir()")
    program = f"""
used = tracefs / 'instances' / '{INSTANCE}2'
used.mkdir()
with (used / 'trace_pipe').open('rb'):
    print('holds', flush=True)
    sys.stdin.read()
used.rmdir()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", IN_TRACEFS + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    count_senders(LocalShell(), 1.0)
    try:
        left = instances()
        assert unused not in left
        assert f"{INSTANCE}2" in left
    finally:
        holder.communicate()
    assert f"{INSTANCE}2" not in instances()


def test_without_tracefs_the_reason_is_told() -> None:
    """A mount namespace whose /sys has no place for it."""
    hidden = 'mount -t tmpfs none /sys/kernel && exec "$@"'
    done = ipi(*SENDERS, "--duration", 1, through=("unshare", "-m", "sh", "-c", hidden, "sh"))
    assert done.returncode == HostError.exit_code
    assert "The guest cannot count its senders: mount: /sys/kernel/tracing" in done.stderr
