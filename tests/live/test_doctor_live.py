# SPDX-License-Identifier: Apache-2.0
"""`ipitrace doctor` on the machine the tests run on."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from guests import micro_guest
from least_rights import LOOK, NOT_MOUNTED, TRACE, run
from other_user import as_user

from ipitrace.tracer.events import EVENTS

pytestmark = pytest.mark.live


def run_doctor(*arguments: str, through: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*through, sys.executable, "-m", "ipitrace", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_where_the_live_tests_run_ipitrace_can_run() -> None:
    mounts = Path("/proc/self/mounts").read_text()
    done = run_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "'ipitrace run' can work here" in done.stdout
    assert "missing" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert Path("/proc/self/mounts").read_text() == mounts


def test_a_vm_has_lines_of_its_own() -> None:
    with micro_guest("unicast-blocked") as guest:
        done = run_doctor("--vm", f"pid:{guest.pid}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["can_run"]
    assert [vcpu["tid"] for vcpu in report["vm"]["vcpus"]] == list(guest.tids)
    checks = {check["name"]: check for check in report["checks"]}
    assert len(checks) == len(report["checks"])
    assert checks["x2APIC"]["says"].endswith("guest: x2apic")
    assert checks["guest TSC"]["status"] == "ok"
    loaded = int(checks["events"]["says"].split()[0])
    assert 0 < loaded <= len(EVENTS)
    if checks["pinning"]["status"] == "warn":
        assert f" {guest.tids[0]}" in checks["pinning"]["todo"]


def test_an_unknown_vm_lists_what_there_is() -> None:
    with micro_guest("unicast-blocked") as guest:
        done = run_doctor("--vm", "guest1")
    assert done.returncode == 2
    assert "There is no VM 'guest1'." in done.stderr
    assert f"pid:{guest.pid}" in done.stderr


def test_an_ordinary_user_learns_what_is_missing() -> None:
    done = run_doctor(through=as_user())
    assert done.returncode == 3
    lines = {line[8:19].strip(): line[:8].strip() for line in done.stdout.splitlines()}
    assert lines["rights"] == lines["BPF"] == "missing"
    assert lines["events"] == "unknown"
    assert done.stdout.rstrip().rsplit("\n", 1)[-1].startswith("'ipitrace run' cannot trace here")


# As root, in a mount namespace of its own: what the kernel says, and what it does.
_LOCKDOWN = """
mount --make-rprivate / && mount -t debugfs none /sys/kernel/debug
mount -t securityfs none /sys/kernel/security || true
cat /sys/kernel/security/lockdown || echo
cat /sys/kernel/debug/kvm/exits
"""


def test_lockdown_is_told_by_what_it_closes() -> None:
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _LOCKDOWN], capture_output=True, text=True, check=False
    )
    state = re.search(r"\[(\w+)\]", tried.stdout)
    checks = {check["name"]: check for check in json.loads(run_doctor("--json").stdout)["checks"]}
    found = checks["lockdown"]
    assert (state[1] if state else "cannot be read") in found["says"]
    if tried.returncode:
        assert "Operation not permitted" in tried.stderr
        assert found["status"] == "warn"
        assert (
            "KVM's statistics in debugfs cannot be read (Operation not permitted)" in found["says"]
        )
    else:
        assert found["status"] == "ok"
        assert "can be read" in found["says"]


def test_what_cannot_be_tried_is_not_ok() -> None:
    done = run("doctor", "--json", capabilities=(*TRACE, *LOOK), more=NOT_MOUNTED)
    assert done.stdout, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["lockdown"]["status"] == "unknown"
    assert "its effect is not known" in checks["lockdown"]["says"]
    assert checks["tracefs"]["status"] == "warn"
    assert "tracefs is not mounted and cannot be" in checks["tracefs"]["says"]
    done = run("doctor", "--json", capabilities=TRACE)  # mounted, and their owner's alone
    assert done.stdout, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "debugfs cannot be read (Permission denied)" in checks["tracefs"]["says"]
    assert "not mounted" not in checks["tracefs"]["says"]
    # Its processes are others', so that nobody knows who traces.
    assert checks["tracers"]["status"] == "unknown"
    assert checks["VMs"]["status"] in ("unknown", "warn")
