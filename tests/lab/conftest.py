# SPDX-License-Identifier: Apache-2.0
"""Tests on emulated hosts take minutes: they run where IPITRACE_LAB names their host.

`@pytest.mark.lab("amd")` says which host a test needs; `make test-lab-amd` sets the variable.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from lab_result import AMD_SCENARIOS, INTEL_SCENARIOS, NO_APICV_SCENARIOS, LabResult

from lab.common.cache import cache_dir

LAB_VARIABLE = "IPITRACE_LAB"
ARTIFACTS_VARIABLE = "IPITRACE_ARTIFACTS"
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
    """A run on the AMD host."""
    return run_lab("amd", "--count", "150", scenarios=AMD_SCENARIOS)


@pytest.fixture(scope="session")
def intel() -> LabResult:
    """A run on the Intel host, with APICv."""
    return run_lab("intel", "--count", "150", scenarios=INTEL_SCENARIOS)


@pytest.fixture(scope="session")
def no_apicv() -> LabResult:
    """A run on the Intel host without APICv, so without posted interrupts."""
    options = ("--count", "100", "--parameter", "kvm_intel.enable_apicv=0")
    return run_lab("intel", *options, scenarios=NO_APICV_SCENARIOS, name="intel-no-apicv")


def run_lab(
    host: str, *options: str, scenarios: Iterable[str] = (), name: str | None = None
) -> LabResult:
    """Run ipitrace on an emulated host as `make lab-HOST` does.

    The console's log and what ipitrace left stay in the folder that IPITRACE_ARTIFACTS
    names, or else in the lab's cache, for whoever looks into a failure.

    Args:
        host: amd or intel.
        options: of `python -m lab.HOST`.
        scenarios: which to measure; the default ones if none.
        name: of the folder that what comes back goes to; the host's unless given.
    """
    artifacts = os.environ.get(ARTIFACTS_VARIABLE) or cache_dir() / "results"
    output = Path(artifacts).resolve() / (name or host)
    asked = [word for scenario in scenarios for word in ("--scenario", scenario)]
    command = [sys.executable, "-m", f"lab.{host}", "--output", output, *options, "--", *asked]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nleft in {output}"
    return LabResult(output, done.stdout)
