# SPDX-License-Identifier: Apache-2.0
"""What each command needs, as docs/privileges.md says it: with just that it works as another
user, and without any one part of it, it says which is missing."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import Guest, micro_guest, until
from odd_vmms import NOBODY

import ipitrace
from ipitrace.host.privileges import Capability

pytestmark = pytest.mark.live

LOOK = ("sys_ptrace", "dac_read_search")
TRACE = ("bpf", "perfmon")
# debugfs and tracefs are mounted, as on any host with systemd, and /dev/kvm is a group's.
_WITH = """
mount --make-rprivate / && mount -t debugfs none /sys/kernel/debug
mount -t tracefs none /sys/kernel/tracing
mount -t tmpfs none /mnt && mknod /mnt/kvm c 10 232 && chown {uid} /mnt/kvm
mount --bind /mnt/kvm /dev/kvm
{more}
exec setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps={caps} \
    --ambient-caps={caps} --bounding-set={caps} "$@"
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Root's VM."""
    with micro_guest("unicast-blocked") as there:
        yield there


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that everybody may write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def command(
    words: tuple[str, ...], capabilities: tuple[str, ...], more: str = ""
) -> tuple[list[str], dict[str, str]]:
    caps = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    script = _WITH.format(uid=NOBODY, caps=caps, more=more)
    path = str(Path(ipitrace.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": "/nonexistent"}
    unshare = ["unshare", "--mount", "sh", "-ec", script, "sh"]
    return [*unshare, sys.executable, "-m", "ipitrace", *words], environment


def run(
    *words: str, capabilities: tuple[str, ...], more: str = ""
) -> "subprocess.CompletedProcess[str]":
    argv, environment = command(words, capabilities, more)
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env=environment, timeout=120, cwd="/"
    )


def without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def test_list_sees_others_vms_with_these(guest: Guest) -> None:
    done = run("list", "--json", capabilities=LOOK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert guest.pid in {vm["pid"] for vm in found["vms"]}
    assert found["missing"] == []


@pytest.mark.parametrize("words", [("list",), ("doctor",)])
@pytest.mark.parametrize("name", LOOK)
def test_what_is_missing_to_look_is_named(guest: Guest, name: str, words: tuple[str]) -> None:
    said = " ".join(run(*words, capabilities=without(LOOK, name)).stdout.split())
    assert "processes may not be looked into" in said
    assert f"(that takes CAP_{name.upper()})" in said
    assert f"pid:{guest.pid}" not in said


def test_hidden_processes_are_told(guest: Guest) -> None:
    hide = "mount -t proc -o hidepid=invisible proc /proc"
    said = " ".join(run("list", capabilities=(), more=hide).stdout.split())
    assert "which hides others' processes" in said
    assert "which hides" not in run("list", capabilities=LOOK, more=hide).stdout
    assert guest.process.poll() is None


def test_watch_with_just_these(guest: Guest) -> None:
    done = run("watch", "--duration", "1", "--json", capabilities=(*TRACE, *LOOK))
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    [vm] = [vm for vm in last["vms"] if vm["pid"] == guest.pid]
    assert vm["ipis"]["total"] > 0
    assert last["sight"]["missing"] == []


@pytest.mark.parametrize("name", LOOK)
def test_watch_says_that_it_may_overlook_vms(name: str, everybodys: Path) -> None:
    capabilities = (*TRACE, *without(LOOK, name))
    done = run("watch", "--duration", "1", capabilities=capabilities)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"processes may not be looked into (that takes CAP_{name.upper()})" in said
    file = everybodys / "x.prom"
    words = ("watch", "--duration", "1", "--json", "--openmetrics", str(file))
    last = json.loads(run(*words, capabilities=capabilities).stdout.splitlines()[-1])
    assert last["sight"]["unreadable_processes"] > 0
    assert "ipitrace_watch_sight_complete 0\n" in file.read_text()


@pytest.mark.parametrize("name", TRACE)
def test_watch_says_what_tracing_lacks(name: str) -> None:
    done = run("watch", "--duration", "1", capabilities=(*without(TRACE, name), *LOOK))
    assert done.returncode == 3
    assert f"missing: CAP_{name.upper()}" in done.stderr


def test_run_untraced_with_nothing_but_the_device(everybodys: Path) -> None:
    done = run(*_RUN, "--no-trace", "-o", str(everybodys / "r"), capabilities=())
    assert done.returncode in (0, 4), done.stderr
    assert json.loads(done.stdout)["complete"]


def test_run_traced_with_just_these(everybodys: Path) -> None:
    done = run(*_RUN, "-o", str(everybodys / "r"), capabilities=(*TRACE, *LOOK))
    assert done.returncode in (0, 4), done.stderr
    run_json = json.loads(done.stdout)
    assert run_json["complete"]
    assert run_json["observer"]["hooks"]


@pytest.mark.parametrize("name", TRACE)
def test_run_says_what_tracing_lacks(name: str, everybodys: Path) -> None:
    words = (*_RUN, "-o", str(everybodys / "r"))
    done = run(*words, capabilities=(*without(TRACE, name), *LOOK))
    assert done.returncode == 3
    assert f"missing: CAP_{name.upper()}" in done.stderr


_RUN = ("run", "--scenario", "unicast-running", "--count", "200", "--repeat", "1", "--json")


def _capabilities(pid: int) -> dict[str, set[int]]:
    """The effective and bounding sets of all its threads together."""
    found: dict[str, set[int]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        for name, bits in re.findall(r"^(Cap\w+):\t(\w+)$", status, re.MULTILINE):
            value = int(bits, 16)
            found.setdefault(name, set()).update(i for i in range(64) if value >> i & 1)
        assert "NoNewPrivs:\t1" in status
    return found


def test_watch_gives_up_what_it_no_longer_needs(guest: Guest) -> None:
    words = [sys.executable, "-m", "ipitrace", "watch", "--json", "--interval", "0.2"]
    path = str(Path(ipitrace.__file__).parents[1])
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as watch:
        try:
            assert watch.stdout is not None
            watch.stdout.readline()
            held = _capabilities(watch.pid)
            most = {Capability.BPF, Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH}
            for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
                assert held.get(name, set()) <= most, name
            # And it still takes up a VM that starts, and counts in it.
            with micro_guest("unicast-blocked") as young:

                def counted() -> bool:
                    assert watch.stdout is not None
                    vms = json.loads(watch.stdout.readline())["vms"]
                    return any(vm["pid"] == young.pid and vm["ipis"]["total"] for vm in vms)

                until(counted)
            assert guest.process.poll() is None
        finally:
            watch.kill()


def test_run_gives_up_what_it_no_longer_needs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ipitrace", *_RUN, "--scenario", "unicast-preempted"]
    words += ["--repeat", "3", "-o", str(tmp_path / "r")]
    path = str(Path(ipitrace.__file__).parents[1])
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as running:
        seen: set[int] | None = None
        while running.poll() is None and seen is None:
            status = Path(f"/proc/{running.pid}/status").read_text()
            if "NoNewPrivs:\t1" in status:
                bits = re.search(r"^CapEff:\t(\w+)$", status, re.MULTILINE)
                assert bits is not None
                seen = {i for i in range(64) if int(bits[1], 16) >> i & 1}
            time.sleep(0.01)
        out, _ = running.communicate(timeout=120)
    assert running.returncode in (0, 4)
    assert json.loads(out)["complete"]
    assert seen is not None
    assert not seen & {Capability.SETUID, Capability.SETGID, Capability.NET_ADMIN, 16, 17}
