# SPDX-License-Identifier: Apache-2.0
"""Tests in a Linux guest take minutes: they run where IPITRACE_GUEST names their guest.

It is a list of Debian suites, whose kernels are booted; `make test-guest` sets it.
"""

import os
from pathlib import Path

import pytest
from guest_result import GuestResult

from ipitrace.senders.inside import COUNT, LAUNCH
from lab.common.cache import cache_dir
from lab.guest.boot import Guest, boot_guest

GUEST_VARIABLE = "IPITRACE_GUEST"
ARTIFACTS_VARIABLE = "IPITRACE_ARTIFACTS"
STORMS = Path(__file__).with_name("storms.sh")
SENDERS = (("launch", LAUNCH), ("count", COUNT))
GUESTS = {
    "bullseye": Guest("bullseye", cpus=4, x2apic=False, script=STORMS, texts=SENDERS),
    "bookworm": Guest("bookworm", cpus=2, x2apic=False, script=STORMS, texts=SENDERS),
    "trixie": Guest(
        "trixie", cpus=4, x2apic=True, script=STORMS, texts=SENDERS, parameters=("preempt=full",)
    ),
    "trixie-backports": Guest(
        "trixie-backports", cpus=2, x2apic=True, script=STORMS, texts=SENDERS
    ),
}


def asked_for() -> list[str]:
    return [name for name in os.environ.get(GUEST_VARIABLE, "").split(",") if name]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("guest") is not None and not asked_for():
        pytest.skip(f"{GUEST_VARIABLE} names no guest: make test-guest")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "guest" in metafunc.fixturenames:
        metafunc.parametrize("guest", asked_for() or GUESTS, indirect=True, scope="session")


@pytest.fixture(scope="session")
def guest(request: pytest.FixtureRequest) -> GuestResult:
    """What storms.sh left in a guest.

    It stays in the folder that IPITRACE_ARTIFACTS names, or else in the lab's cache, for
    whoever looks into a failure.
    """
    chosen = GUESTS[request.param]
    kept = os.environ.get(ARTIFACTS_VARIABLE) or cache_dir() / "results"
    output = Path(kept).resolve() / f"guest-{request.param}"
    boot_guest(chosen, output)
    return GuestResult(chosen, output)
