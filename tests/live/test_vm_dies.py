# SPDX-License-Identifier: Apache-2.0
"""A VM that ends in the middle of a storm ends the storm, in words."""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ipitrace.base.errors import MeasurementError, UsageError
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.linux.helper import GuestCpus, HelperStatus, Module
from ipitrace.storm.transport.local import LocalShell
from ipitrace.vm import VirtualMachine, resolve_vm
from ipitrace.words.scenarios import select_scenarios

pytestmark = [
    pytest.mark.live("root", "kvm"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]

STATUS = HelperStatus(2, "1.0", Module(loaded=True), "6.12", 2, (0, 1), "x2apic", 2_000_000, {})


def appeared(pid: int) -> VirtualMachine:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            vm = resolve_vm(f"pid:{pid}")
        except UsageError:
            assert time.monotonic() < deadline_s
        else:
            if len(vm.vcpus) == 2:
                return vm
        time.sleep(0.1)


def test_a_vm_that_is_killed_ends_its_storm(tmp_path: Path) -> None:
    helper = tmp_path / "ipitrace-storm"  # a storm that takes for ever
    helper.write_text("#!/bin/sh\nexec sleep 1000\n")
    helper.chmod(0o755)
    command = ["qemu-system-x86_64", "-accel", "kvm", "-S", "-smp", "2", "-m", "16"]
    qemu = subprocess.Popen([*command, "-nodefaults", "-display", "none"])
    try:
        vm = appeared(qemu.pid)
        cpus = GuestCpus((0, 1), native=False, emulated=None)
        guest = LinuxGuest(LocalShell(), str(helper), STATUS, vm, cpus)
        (scenario,) = select_scenarios(["unicast-running"])
        seen: list[int] = []
        killer = threading.Timer(1.0, qemu.kill)
        killer.start()
        # Its threads may never have run, so that nobody knows them; a storm needs no more here.
        hooks = Hooks(tick=seen.append)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LinuxGuest, "tids", lambda _guest: ())
            with pytest.raises(MeasurementError, match=r"its process has (ended|closed it)"):
                guest.run(StormRequest(scenario, 2, 10, 0, 0), hooks)
        killer.join()
        assert seen
    finally:
        qemu.kill()
        qemu.wait()
