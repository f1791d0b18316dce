# SPDX-License-Identifier: Apache-2.0
"""Real VMs in other processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

import ipitrace

_T = TypeVar("_T")

# The guest sends rarely, and far more often than any test waits. It says its vCPUs' threads,
# and that it is measuring.
_MICRO = """
import sys
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios
name, n_vcpus, pace = sys.argv[1], int(sys.argv[2]), 100_000_000
request = StormRequest(select_scenarios([name])[0], n_vcpus, 100_000, 1, pace, 30.0)
guest = MicroGuest.prepare(n_vcpus, None)
guest.run(request, Hooks(lambda tids: print(*tids), lambda: print("measuring", flush=True)))
"""


@dataclass(frozen=True)
class Guest:
    """A VM's process."""

    process: "subprocess.Popen[str]"
    tids: tuple[int, ...]
    """Of its vCPUs, in their order, as its own process knows them."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it, and wait until it has."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def micro_guest(scenario: str = "unicast-running", n_vcpus: int = 2) -> Iterator[Guest]:
    """A micro-guest in a process of its own, in mid-storm."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ipitrace.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", _MICRO, scenario, str(n_vcpus)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            tids = tuple(map(int, process.stdout.readline().split()))
            assert process.stdout.readline() == "measuring\n"
            yield Guest(process, tids)
        finally:
            process.kill()


@contextlib.contextmanager
def qemu_guest(*arguments: str) -> Iterator[Guest]:
    """QEMU on KVM with two vCPUs, in its firmware: vCPU 0 runs, vCPU 1 waits for it.

    QEMU with debug-threads names its threads itself: "CPU 0/KVM".
    """
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    machine = ["-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "64", "-smp", "2"]
    silent = ["-nodefaults", "-display", "none"]
    with subprocess.Popen([program, *machine, *silent, *arguments], text=True) as process:
        try:
            yield Guest(process, until(lambda: _named_threads(process, 2)))
        finally:
            process.kill()


def _named_threads(process: "subprocess.Popen[str]", count: int) -> tuple[int, ...]:
    assert process.poll() is None, "QEMU ended"
    names = {
        (task / "comm").read_text().strip(): int(task.name)
        for task in Path(f"/proc/{process.pid}/task").iterdir()
    }
    return tuple(names[f"CPU {i}/KVM"] for i in range(count) if f"CPU {count - 1}/KVM" in names)


def until(ask: Callable[[], _T], limit_s: float = 60.0) -> _T:
    """Ask until the answer is true."""
    deadline_s = time.monotonic() + limit_s
    while not (answer := ask()):
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.02)
    return answer
