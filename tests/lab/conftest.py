# SPDX-License-Identifier: Apache-2.0
"""Tests on emulated hosts take minutes: they run where IPITRACE_LAB names their host.

`@pytest.mark.lab("amd")` says which host a test needs; `make test-lab-amd` sets the variable.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from lab_result import (
    AMD_SCENARIOS,
    GROUP_SCENARIOS,
    GROUP_VCPUS,
    INTEL_SCENARIOS,
    NO_APICV_SCENARIOS,
    WATCHED_SCENARIOS,
    LabResult,
)

from ipitrace.words.scenarios import DEFAULT_SCENARIOS
from lab.common.cache import cache_dir
from lab.common.job import build_wheel

LAB_VARIABLE = "IPITRACE_LAB"
ARTIFACTS_VARIABLE = "IPITRACE_ARTIFACTS"
CHECKOUT = Path(__file__).parents[2]
GROUPS = " ".join(
    [
        *(f"--vm micro:{GROUP_VCPUS}", "--count 20", "--repeat 1"),
        *(f"--scenario {name}" for name in GROUP_SCENARIOS),
    ]
)
WATCH = [word for name in WATCHED_SCENARIOS for word in ("--watch", name)]


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
    return run_lab("amd", "--count", "150", "--then", GROUPS, *WATCH, scenarios=AMD_SCENARIOS)


@pytest.fixture(scope="session")
def intel_runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[LabResult]]]:
    """The runs on the Intel host that the chosen tests ask for, by the name of their fixture.

    Bochs has one thread: there are as many at once as there are CPUs.
    """
    wheel = ("--wheel", str(build_wheel(tmp_path_factory.mktemp("wheel"))))
    with_apicv = (*wheel, "--count", "150", "--then", GROUPS)
    short = (*wheel, "--count", "60")
    no_apicv = (*wheel, "--count", "100", "--parameter", "kvm_intel.enable_apicv=0")
    runs: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "intel": (INTEL_SCENARIOS, with_apicv),
        "once": (DEFAULT_SCENARIOS, short),
        "again": (DEFAULT_SCENARIOS, short),
        "no_apicv": (NO_APICV_SCENARIOS, no_apicv),
    }
    chosen = {name for item in request.session.items for name in fixtures_of(item)}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            name: pool.submit(run_lab, "intel", *options, scenarios=scenarios, name=name)
            for name, (scenarios, options) in runs.items()
            if name in chosen
        }


@pytest.fixture(scope="session")
def intel(intel_runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """A run on the Intel host, with APICv."""
    return intel_runs["intel"].result()


@pytest.fixture(scope="session")
def once(intel_runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """A short run, with APICv."""
    return intel_runs["once"].result()


@pytest.fixture(scope="session")
def again(intel_runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """The same run once more."""
    return intel_runs["again"].result()


@pytest.fixture(scope="session")
def no_apicv(intel_runs: Mapping[str, Future[LabResult]]) -> LabResult:
    """A run on the Intel host without APICv, so without posted interrupts."""
    return intel_runs["no_apicv"].result()


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    """The names of the fixtures that a test asks for."""
    return item.fixturenames if isinstance(item, pytest.Function) else ()


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
    command = [sys.executable, "-m", f"lab.{host}", "--output", output, *options]
    command += ["--", *asked] if asked else []
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nleft in {output}"
    return LabResult(output, done.stdout)
