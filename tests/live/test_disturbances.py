# SPDX-License-Identifier: Apache-2.0
"""What happens to a run from outside, while it measures, is said; what spoils it is exit code 4."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checks import assert_sound
from guests import micro_guest, until

import ipitrace
from ipitrace.base.errors import ExitCode

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="vCPUs cannot be pinned here"),
]

CHECKOUT = Path(ipitrace.__file__).parents[1]
# One storm of some seconds, by its pace, however busy the host is.
STORM = ("--scenario", "unicast-running", "--repeat", "1", "--count", "800", "--pace", "10000000")
# The command itself, which makes a file when its warm-up is over.
TELLING = """
import pathlib, sys
from ipitrace.cli import main
from ipitrace.commands import run
mark = pathlib.Path(sys.argv.pop(1))
class Telling(run.ProgressBar):
    def show(self, scenario, share):
        if share > 0.01:
            mark.touch()
run.ProgressBar = Telling
main()
"""


@contextlib.contextmanager
def running(
    directory: Path, *arguments: str, through: Sequence[str] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """`ipitrace run` in mid-storm."""
    mark = directory.with_suffix(".measuring")
    command = [sys.executable, "-c", TELLING, str(mark), "run", "-o", str(directory), *arguments]
    command += ["--section", "losses"]
    with subprocess.Popen(
        [*through, *command],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: process.poll() is not None or mark.exists())
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()


def vcpu_threads(pid: int) -> list[int]:
    """Threads of the process that may run on one CPU only, KVM's own worker aside."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            own = not (task / "comm").read_text().startswith("kvm-")
            if own and len(os.sched_getaffinity(int(task.name))) == 1:
                found.append(int(task.name))
    return sorted(found) if len(found) == 2 else []


def finished(process: "subprocess.Popen[str]", directory: Path) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what it printed as one line, run.json) of a run that goes to its end."""
    out, err = process.communicate(timeout=120)
    run = json.loads((directory / "run.json").read_text())
    assert_sound(run)
    return process.returncode, " ".join((out + err).split()), run


def of_kind(run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [found for found in run["disturbances"] if found["kind"] == kind]


def assert_worthless(process: "subprocess.Popen[str]", directory: Path, kind: str) -> str:
    """It says so with exit code 4, in which repetition, and for this reason."""
    code, said, run = finished(process, directory)
    assert code == ExitCode.UNTRUSTWORTHY, said
    (found, *_) = of_kind(run, kind)
    assert found["worthless"]
    assert (found["scenario"], found["repetition"], found["mode"]) == ("unicast-running", 0, "off")
    assert found["says"] in run["untrustworthy"][0]
    assert "(repetition 0: unicast-running, off)" in said
    return said


def test_vcpus_moved_to_one_cpu(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process:
        threads = vcpu_threads(process.pid)
        cpu = min(os.sched_getaffinity(threads[0]))
        for tid in threads:
            os.sched_setaffinity(tid, {cpu})
        said = assert_worthless(process, tmp_path / "r", "moved")
    assert "but not all the time" in said
    assert f"was moved to CPU {cpu}" in said


def test_vcpus_moved_and_moved_back(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process:
        threads = {tid: os.sched_getaffinity(tid) for tid in vcpu_threads(process.pid)}
        if "nr_migrations" not in Path(f"/proc/{process.pid}/sched").read_text():
            pytest.skip("this kernel does not count migrations")
        for cpus in ({min(map(min, threads.values()))}, None):
            for tid, own in threads.items():
                os.sched_setaffinity(tid, cpus or own)
            time.sleep(0.5)
        said = assert_worthless(process, tmp_path / "r", "moved")
    assert "was migrated" in said


def test_events_tell_where_a_vcpu_really_was(tmp_path: Path) -> None:
    """Moved and moved back in each mode; in one of them every entry into the guest is recorded."""
    with running(tmp_path / "r", *STORM[:-3], "300", *STORM[-2:]) as process:
        handled: list[int] = []
        while process.poll() is None and len(handled) < 3:
            threads = {tid: os.sched_getaffinity(tid) for tid in vcpu_threads(process.pid)}
            if not threads or max(threads) in handled:
                time.sleep(0.05)
                continue
            handled.append(max(threads))
            time.sleep(0.5)
            for cpus in ({min(map(min, threads.values()))}, None):
                for tid, own in threads.items():
                    os.sched_setaffinity(tid, cpus or own)
                time.sleep(0.2)
        code, said, run = finished(process, tmp_path / "r")
    assert code == ExitCode.UNTRUSTWORTHY, said
    moved = of_kind(run, "moved")
    assert {found["mode"] for found in moved} == {"off", "stages", "evidence"}
    assert any("its host events" in found["says"] for found in moved if found["mode"] == "evidence")


def test_a_run_that_is_stopped(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        said = assert_worthless(process, tmp_path / "r", "stopped")
    assert "ipitrace itself did not run for" in said


def test_two_runs_at_once_see_each_other(tmp_path: Path) -> None:
    with (
        running(tmp_path / "a", *STORM, "--no-trace") as first,
        running(tmp_path / "b", *STORM, "--no-trace") as second,
    ):
        _, said_first, run_first = finished(first, tmp_path / "a")
        _, said_second, run_second = finished(second, tmp_path / "b")
    for said, run, other in (
        (said_first, run_first, second.pid),
        (said_second, run_second, first.pid),
    ):
        (found,) = [d for d in of_kind(run, "run") if f"(pid {other})" in d["says"]]
        assert not found["worthless"]
        assert found["says"] in said
        assert "also used CPU" in found["says"]


def assert_seen(run: dict[str, Any], said: str, *words: str) -> None:
    """A neighbour was seen after the first repetition, and it spoils nothing."""
    (found,) = [d for d in of_kind(run, "neighbour") if all(word in d["says"] for word in words)]
    assert not found["worthless"]
    assert found["repetition"] == 0
    assert found["says"] in said


def test_a_vm_that_comes(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process, micro_guest() as guest:
        _, said, run = finished(process, tmp_path / "r")
    assert_seen(run, said, f"the KVM process {guest.pid}", "appeared")


@contextlib.contextmanager
def bpf_program() -> Iterator[None]:
    """A loaded raw tracepoint program: return 0."""
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 17, 2, ctypes.addressof(code), ctypes.addressof(licence))
    buffer = ctypes.create_string_buffer(attr.ljust(48, b"\0"), 48)
    fd = ctypes.CDLL(None, use_errno=True).syscall(321, 5, buffer, 48)  # bpf(BPF_PROG_LOAD)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(fd)


def test_a_bpf_program_that_comes(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process, bpf_program():
        _, said, run = finished(process, tmp_path / "r")
    came = [d for d in of_kind(run, "neighbour") if "BPF program" in d["says"]]
    assert [d["says"] for d in came if d["says"].endswith("appeared")], said


@contextlib.contextmanager
def perf_event() -> Iterator[None]:
    """A software counter of this process, as profilers hold them."""
    # struct perf_event_attr: PERF_TYPE_SOFTWARE, its size (VER0), PERF_COUNT_SW_TASK_CLOCK
    attr = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 64, 1), 64)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    fd = syscall(298, attr, 0, -1, -1, 0)  # perf_event_open
    if fd < 0:
        pytest.skip(f"no perf events here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)


def test_a_profiler_that_comes(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process, perf_event():
        _, said, run = finished(process, tmp_path / "r")
    assert_seen(run, said, f"process {os.getpid()}, which holds perf events, appeared")


IN_TRACEFS = (
    "unshare",
    *("--mount", "sh", "-ec"),
    'mountpoint -q /sys/kernel/tracing || mount -t tracefs t /sys/kernel/tracing\nexec "$@"',
    "sh",
)


@contextlib.contextmanager
def ftrace() -> Iterator[str]:
    """An instance with KVM's events on."""
    name = f"ipitrace-test-{os.getpid()}"
    at = f"/sys/kernel/tracing/instances/{name}"

    def do(script: str) -> None:
        subprocess.run([*IN_TRACEFS, "sh", "-ec", script], check=True)

    do(f"mkdir {at}")
    try:
        do(f"echo 1 > {at}/events/kvm/enable")
        yield name
    finally:
        do(f"rmdir {at}")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_ftrace_that_is_switched_on(tmp_path: Path) -> None:
    with (
        running(tmp_path / "r", *STORM, "--no-trace", through=IN_TRACEFS) as process,
        ftrace() as name,
    ):
        _, said, run = finished(process, tmp_path / "r")
    assert_seen(run, said, f"ftrace's kvm events in the instance '{name}' were switched on")


HOG = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    pass
"""


def test_a_hog_on_a_vcpus_cpu(tmp_path: Path) -> None:
    with running(tmp_path / "r", *STORM, "--no-trace") as process:
        cpu = min(os.sched_getaffinity(vcpu_threads(process.pid)[1]))
        subprocess.run([sys.executable, "-I", "-S", "-c", HOG, str(cpu), "3"], check=True)
        _, said, run = finished(process, tmp_path / "r")
    waited = [d for d in of_kind(run, "waited") if d["says"].startswith("vCPU 1's")]
    assert waited, said
    assert int(waited[0]["says"].split("waited ")[1].split()[0]) >= 2000, waited
    assert "for a CPU that other threads used" in said
