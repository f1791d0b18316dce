# SPDX-License-Identifier: Apache-2.0
"""A VM that is not ours: where its vCPUs run is its owner's choice, and a change is said."""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from guests import qemu_guest, until
from strategies import receipts, sends

from ipitrace.abi.storm import ABI_VERSION, FILE, FILE_MAGIC, StormState
from ipitrace.base.errors import UsageError
from ipitrace.host.conditions import Conditions, read_conditions
from ipitrace.measure.steadiness import Looks, Setting, compare
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.linux.helper import GuestCpus, HelperStatus, Module
from ipitrace.storm.transport.local import LocalShell
from ipitrace.vm import VirtualMachine, resolve_vm
from ipitrace.words.scenarios import select_scenarios

pytestmark = [
    pytest.mark.live("root", "kvm"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only"),
]

STATUS = HelperStatus(2, "1", Module(loaded=True), "6.12", 2, (0, 1), "x2apic", 2_000_000, {})
TARGET = 1


def canned_storm(path: Path) -> None:
    """What a helper prints of ten IPIs."""
    log = sends([(i * 10_000, i * 10_000 + 100, i * 10_000 + 900) for i in range(1, 11)])
    handled = receipts([i * 10_000 + 500 for i in range(1, 11)])
    header = np.zeros(1, FILE)
    header["magic"], header["abi_version"] = FILE_MAGIC, ABI_VERSION
    header["header_bytes"], header["n_sends"] = FILE.itemsize, len(log)
    header["n_vcpus"], header["vector"], header["tsc_khz"] = 2, 0xEC, 2_000_000
    header["status"]["state"], header["status"]["sent"] = StormState.DONE, len(log)
    counts = np.array([0, len(handled)], "<u8")
    path.write_bytes(b"".join(part.tobytes() for part in (header, log, counts, handled)))


def seen(pid: int, tids: Sequence[int]) -> VirtualMachine | None:
    """The VM as it is found; who its threads are is known from QEMU's own names."""
    try:
        vm = resolve_vm(f"pid:{pid}")
    except UsageError:
        return None
    vcpus = tuple(replace(vcpu, tid=tids[vcpu.index]) for vcpu in vm.vcpus)
    return replace(vm, vcpus=vcpus) if len(vcpus) == 2 else None


@pytest.mark.parametrize(
    ("moved", "worthless"),
    [((), None), ((TARGET,), False), ((0, TARGET), True)],
    ids=["nobody moves", "one moves", "both move to one CPU"],
)
def test_an_owner_who_moves_vcpus_in_mid_storm(
    moved: Sequence[int],
    worthless: bool | None,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    canned_storm(tmp_path / "storm")
    helper = tmp_path / "ipitrace-storm"
    helper.write_text(f"#!/bin/sh\nsleep 1.5\ncat {tmp_path}/storm\n")
    helper.chmod(0o755)
    looks: list[Conditions] = []
    with qemu_guest("-name", "guest1,debug-threads=on") as qemu:
        vm = until(lambda: seen(qemu.pid, qemu.tids))
        cpus = GuestCpus((0, 1), native=False, emulated=None)
        guest = LinuxGuest(LocalShell(), str(helper), STATUS, vm, cpus)
        cpu = min(os.sched_getaffinity(0))

        def move() -> None:
            for vcpu in moved:
                os.sched_setaffinity(qemu.tids[vcpu], {cpu})

        hooks = Hooks(
            threads_known=lambda tids: looks.append(read_conditions(tids, ())),
            over=lambda: looks.append(read_conditions(qemu.tids, ())),
        )
        (scenario,) = select_scenarios(["unicast-running"])
        owner = threading.Timer(0.5, move)
        owner.start()
        storm = guest.run(StormRequest(scenario, 2, 10, 0, 0), hooks)
        owner.join()
    start, end = looks
    setting = Setting(
        scenario=scenario,
        targets=guest.targets(scenario),
        pinned=guest.pinned_cpus,
        ours=False,
        first=start,
        before=start,
        tsc_hz=2e9,
        warmup=0,
    )
    found = [d for d in compare(Looks(start, end), storm, setting) if d.kind == "moved"]
    assert [d.worthless for d in found] == [worthless] * len(moved)
    for vcpu, disturbance in zip(moved, found, strict=True):
        assert disturbance.says.startswith(f"vCPU {vcpu}'s thread, which should run on CPU")
        assert disturbance.says.endswith(f"was moved to CPU {cpu}")
