# SPDX-License-Identifier: Apache-2.0
"""What each command needs, as docs/privileges.md says it: with just that it works as another
user, and without any one part of it, it says which is missing."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ipi
from guests import Guest, micro_guest, until
from least_rights import LOOK, NOT_MOUNTED, TRACE, run, without
from other_user import open_folder

import ipitrace
from ipitrace.host.privileges import Capability
from ipitrace.recording.writer import RUN_FILE

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Root's VM."""
    with micro_guest("unicast-blocked") as there:
        yield there


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that everybody may write to."""
    with open_folder(0o777) as folder:
        yield folder


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
    assert re.search("process(es)? cannot be inspected", said)
    assert f"(this needs CAP_{name.upper()})" in said
    assert f"pid:{guest.pid}" not in said


@pytest.mark.parametrize(
    ("owner", "mode", "hint"),
    [
        ("0:0", "600", "has mode 0600 and belongs to root:root."),
        ("0:0", "660", "has mode 0660 and belongs to root:root."),
        ("0:1", "600", "has mode 0600 and belongs to root:daemon."),
        ("0:1", "660", "sudo usermod -aG daemon $USER, then log in again."),
        ("0:4242", "660", "belongs to group 4242, which has no name here."),
    ],
)
def test_the_hint_about_the_device_is_what_would_help(
    owner: str, mode: str, hint: str, everybodys: Path
) -> None:
    of = f"chown {owner} /mnt/kvm && chmod {mode} /mnt/kvm\n"
    words = ("run", "--no-trace", "--scenario", "self", "-q", "-o", str(everybodys / "r"))
    for command in (words, ("doctor",)):
        done = run(*command, capabilities=(), more=of)
        assert done.returncode == 3, done.stderr
        said = " ".join((done.stdout + done.stderr).replace("\n", " ").split())
        assert "No permission to open /dev/kvm." in said
        assert hint in said
        assert ("usermod" in said) == ("usermod" in hint)


def test_the_hint_about_rights_is_of_the_command_that_runs(everybodys: Path) -> None:
    done = run("watch", capabilities=LOOK)
    assert done.returncode == 3
    assert "Run it with sudo.\n" in done.stderr
    assert "--" not in done.stderr
    words = ("run", "--scenario", "self", "--count", "100", "--repeat", "1", "-q")
    done = run(*words, "-o", str(everybodys / "r"), capabilities=LOOK)
    assert done.returncode == 3
    assert "Run it with sudo; --no-trace measures without" in " ".join(done.stderr.split())
    done = run(*words, "--no-trace", "-o", str(everybodys / "r"), capabilities=LOOK)
    assert done.returncode == 0, done.stderr


def test_the_hint_about_a_vm_is_of_the_command_that_runs(tmp_path: Path) -> None:
    for words, lacks in (
        (("guest", "status", "--vm", "no-such-vm"), "--no-trace"),
        (("watch", "--vm", "no-such-vm"), "--"),
    ):
        done = ipi(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert "There is no VM 'no-such-vm'" in done.stderr
        assert lacks not in done.stderr
    done = ipi("run", "--vm", "no-such-vm", cwd=tmp_path)
    assert "With --via and --no-trace" in " ".join(done.stderr.split())


def test_hidden_processes_are_told(guest: Guest) -> None:
    hide = "mount -t proc -o hidepid=invisible proc /proc"
    said = " ".join(run("list", capabilities=(), more=hide).stdout.split())
    assert "which hides other users' processes" in said
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
    assert re.search(rf"process(es)? cannot be inspected \(this needs CAP_{name.upper()}\)", said)
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


AB = ("ab", "--a", "true", "--b", "true", "--rounds", "2", "--format", "json")


def test_ab_with_just_these(everybodys: Path) -> None:
    words = (*AB, "-o", str(everybodys / "r"), "--", *_RUN[1:-1])
    done = run(*words, capabilities=(*TRACE, *LOOK))
    # Too few rounds to decide anything, which is not asked here.
    assert done.returncode in (0, 1, 4), done.stderr
    assert json.loads(done.stdout)["comparisons"], done.stderr
    for side in ("a", "b"):
        for recording in (everybodys / "r" / side).iterdir():
            assert json.loads((recording / "run.json").read_text())["observer"]["hooks"]


@pytest.mark.parametrize("name", TRACE)
def test_ab_says_what_tracing_lacks(name: str, everybodys: Path) -> None:
    words = (*AB, "-o", str(everybodys / "r"), "--", *_RUN[1:-1])
    done = run(*words, capabilities=(*without(TRACE, name), *LOOK))
    assert done.returncode == 3
    assert f"missing: CAP_{name.upper()}" in done.stderr


PREEMPT = ("run", "--scenario", "unicast-preempted", "--count", "60", "--repeat", "1", "--json")


def test_a_target_is_preempted_with_just_these(everybodys: Path) -> None:
    """What preempts is started after the others were given up, and needs its own."""
    words = (*PREEMPT, "-o", str(everybodys / "r"))
    done = run(*words, capabilities=(*TRACE, *LOOK, "sys_nice", "sys_admin"))
    assert done.returncode in (0, 4), done.stderr
    [row] = json.loads(done.stdout)["scenarios"]
    assert row["status"] == "measured"


@pytest.mark.parametrize("name", ["sys_nice", "sys_admin"])
def test_what_is_missing_to_preempt_is_named(name: str, everybodys: Path) -> None:
    words = (*PREEMPT, "--no-trace", "-o", str(everybodys / "r"))
    done = run(*words, capabilities=without(("sys_nice", "sys_admin"), name))
    assert done.returncode == 3
    assert f"needs CAP_{name.upper()}." in " ".join(done.stderr.split())


def test_without_the_device_nothing_runs(everybodys: Path) -> None:
    words = (*_RUN, "--no-trace", "-o", str(everybodys / "r"))
    done = run(*words, capabilities=(), more="chown 0 /mnt/kvm")
    assert done.returncode == 3
    assert "No permission to open /dev/kvm" in done.stderr


def test_run_traces_without_seeing_its_neighbours(everybodys: Path) -> None:
    done = run(*_RUN, "-o", str(everybodys / "r"), capabilities=TRACE)
    assert done.returncode in (0, 4), done.stderr
    result = json.loads(done.stdout)
    assert result["observer"]["hooks"]
    assert result["host"]["neighbours"]["unreadable_processes"] > 0
    assert result["host"]["neighbours"]["bpf_programs"] is None


def test_where_nothing_is_mounted_and_may_be(everybodys: Path) -> None:
    """Without CAP_SYS_ADMIN it does without tracefs and debugfs, and says so."""
    words = (*_RUN, "-o", str(everybodys / "r"))
    done = run(*words, capabilities=(*TRACE, *LOOK), more=NOT_MOUNTED)
    assert done.returncode in (0, 4), done.stderr
    assert json.loads(done.stdout)["observer"]["hooks"]
    said = run("doctor", capabilities=(*TRACE, *LOOK), more=NOT_MOUNTED).stdout
    assert "warn    tracefs" in said
    assert "ok      tracefs" in run("doctor", capabilities=(*TRACE, *LOOK)).stdout


@pytest.mark.parametrize("name", TRACE)
def test_doctor_names_what_tracing_lacks(name: str) -> None:
    done = run("doctor", capabilities=(*without(TRACE, name), *LOOK))
    assert done.returncode == 3
    said = " ".join(done.stdout.split())
    assert f"missing: CAP_{name.upper()}." in said
    assert "missing rights" in said


def test_this_machine_itself_is_roots(everybodys: Path) -> None:
    every = (*TRACE, *LOOK, "sys_module", "sys_admin")
    output = ("-o", str(everybodys / "r"))
    for words in (("run", "--vm", "local", *output), ("guest", "status", "--vm", "local")):
        done = run(*words, capabilities=every)
        assert done.returncode == 3
        assert "needs root" in done.stderr


def test_reading_recordings_takes_nothing() -> None:
    first, second = RECORDINGS / "micro-pvm", RECORDINGS / "micro-pvm"
    for words in (("report", str(first)), ("compare", str(first), str(second)), ("scenarios",)):
        done = run(*words, capabilities=(), more="chown 0 /mnt/kvm")
        assert done.returncode in (0, 1), (words, done.stderr)
        assert done.stdout


def test_a_recording_that_may_not_be_looked_at() -> None:
    """One in a closed folder, and one whose folder may be listed and not entered."""
    with open_folder() as folder:
        for mode in (0o700, 0o744):
            folder.chmod(mode)
            (folder / RUN_FILE).write_text("{}")
            for given in (folder, folder / RUN_FILE):
                for words in (("report", str(given)), ("compare", str(given), str(given))):
                    done = run(*words, capabilities=())
                    assert done.returncode == 2, (words, done.stderr)
                    assert re.search("cannot be accessed: Perm|is not readable", done.stderr)


RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
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
