# SPDX-License-Identifier: Apache-2.0
"""What is given up stays given up, in this process and in those it starts."""

import subprocess
import sys
from pathlib import Path

import ipitrace
from ipitrace.host.privileges import Capability, held

# Says the sets before and after, and those of a child afterwards.
_CHILD = """
import subprocess
from ipitrace.host.privileges import Capability, held, keep_only
before = held().permitted
keep_only({Capability.BPF, Capability.SYS_PTRACE})
after = held()
print(before, after.effective, after.permitted, after.inheritable)
print(subprocess.check_output(["cat", "/proc/self/status"], text=True))
"""
_KEPT = 1 << Capability.BPF | 1 << Capability.SYS_PTRACE


def _run(code: str) -> str:
    root = str(Path(ipitrace.__file__).parents[1])
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root)


def test_nothing_but_what_is_kept() -> None:
    first, *status = _run(_CHILD).splitlines()
    before, effective, permitted, inheritable = map(int, first.split())
    assert permitted == effective == before & _KEPT
    assert inheritable == 0
    child = dict(line.split(":\t") for line in status if line.startswith(("Cap", "NoNew")))
    assert int(child["CapEff"], 16) & ~_KEPT == 0
    assert child["CapAmb"].strip("0") == ""
    assert child["NoNewPrivs"] == "1"


def test_what_is_held_is_what_the_kernel_says() -> None:
    status = Path("/proc/thread-self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("CapPrm:")]
    assert held().permitted == int(line.split()[1], 16)


def test_no_thread_runs_that_would_keep_what_is_given_up() -> None:
    code = "import os, ipitrace.cli; print(len(os.listdir('/proc/self/task')))"
    assert _run(code) == "1\n"
