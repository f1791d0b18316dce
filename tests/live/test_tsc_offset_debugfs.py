# SPDX-License-Identifier: Apache-2.0
"""Kernels before 5.16 state a vCPU's TSC offset in debugfs only; both must say the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ipitrace
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.storm.micro.kvm import KvmVcpu
from ipitrace.words.scenarios import select_scenarios

DEBUGFS = "/sys/kernel/debug"
WITH_DEBUGFS = f'mountpoint -q {DEBUGFS} || mount -t debugfs debugfs {DEBUGFS}; exec "$@"'


@pytest.mark.live("root", "kvm")
def test_debugfs_stands_in_for_the_attribute() -> None:
    inside = ["sh", "-c", WITH_DEBUGFS, "sh", sys.executable, __file__]
    package = Path(ipitrace.__file__).parents[1]
    done = subprocess.run(
        ["unshare", "--mount", *inside],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(0, 0)\n(0, 0)\n"


def offsets() -> tuple[int | None, ...]:
    """Those of a guest that has just run."""
    (scenario,) = select_scenarios(["unicast-halted"])
    request = StormRequest(scenario, 2, 3, 0, 100_000)
    return MicroGuest.prepare(2, None).run(request, Hooks()).tsc_offsets_end


if __name__ == "__main__":
    print(offsets())
    KvmVcpu.tsc_offset = lambda _vcpu: None  # type: ignore[method-assign]
    print(offsets())
