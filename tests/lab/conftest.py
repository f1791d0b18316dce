# SPDX-License-Identifier: Apache-2.0
"""Tests on emulated hosts take minutes: they run where IPITRACE_LAB names their host.

`@pytest.mark.lab("amd")` says which host a test needs; `make test-lab-amd` sets the variable.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab_result import LabResult

from lab.common.cache import cache_dir

LAB_VARIABLE = "IPITRACE_LAB"
CHECKOUT = Path(__file__).parents[2]


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("lab")
    if marker is None:
        return
    (host,) = marker.args
    if host not in os.environ.get(LAB_VARIABLE, "").split(","):
        pytest.skip(f"{LAB_VARIABLE} does not name {host}: make test-lab-{host}")


@pytest.fixture(scope="session")
def amd() -> LabResult:
    """A run of the default scenarios on the AMD host."""
    return run_lab("amd", "--count", "150")


@pytest.fixture(scope="session")
def intel() -> LabResult:
    """A run of the default scenarios on the Intel host, with APICv."""
    return run_lab("intel", "--count", "150")


def run_lab(host: str, *options: str, name: str | None = None) -> LabResult:
    """Run ipitrace on an emulated host as `make lab-HOST` does.

    What it leaves stays in the lab's cache, for whoever looks into a failure.
    """
    output = cache_dir() / "results" / (name or host)
    command = [sys.executable, "-m", f"lab.{host}", "--output", str(output), *options]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    return LabResult(output, done.stdout)
