# SPDX-License-Identifier: Apache-2.0
"""The ways into a VM that is not ours, with just what docs/privileges.md says each takes.

The VM is a real one, the guest behind the way an honest one that is played (see harness).
What the way needs after `run` has given up its privileges it must still have.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from guests import Guest, micro_guest, until
from harness import COUNT, HERE, SIGNS, answers
from least_rights import LOOK, TRACE, folder_of_theirs, run, without
from odd_vmms import NOBODY, python_named, vmm
from sshd import NAME, ssh_on_path, sshd

pytestmark = pytest.mark.live

OTHER = 54321  # a user who is neither root nor the one that ipitrace runs as here
STORM = ("run", "--scenario", "unicast-running", "--count", str(COUNT), "--repeat", "1", "--json")
HONEST = {"at": "nothing", "actions": [], "mute": False, "codes": {}, "signs": SIGNS}
PORT = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"

# In the VMM: a second vCPU, which waits to be started, and the agent.
_AGENT = """
import runpy
second = fcntl.ioctl(vm, 0xAE41, 1)
def wait():
    try:
        fcntl.ioctl(second, 0xAE80, 0)
    except InterruptedError:
        pass
threading.Thread(target=wait, daemon=True).start()
def serve():
    sys.argv = ["agent", {socket!r}, {folder!r}]
    runpy.run_path({program!r}, run_name="__main__")
threading.Thread(target=serve, daemon=True).start()
while not os.path.exists({socket!r}):
    time.sleep(0.01)
"""

# A root directory of its own, as libvirt's sandboxes give one. The socket's folder is there only.
_ELSEWHERE = """
mount --make-rprivate / && mount -t tmpfs none /mnt
for place in /*; do
    test "$place" = /mnt || ! test -d "$place" && continue
    mkdir "/mnt$place"
    test -L "$place" || mount --rbind "$place" "/mnt$place"
done
for place in bin lib lib64; do test ! -L /$place || { rmdir /mnt/$place; cp -P /$place /mnt; }; done
cp -a "$1" /mnt/only-here
shift
exec chroot /mnt "$@"
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Root's VM."""
    with micro_guest("unicast-blocked") as there:
        yield there


@pytest.fixture
def theirs() -> Iterator[Path]:
    with folder_of_theirs() as folder:
        yield folder


def play(folder: Path) -> None:
    (folder / "mode.json").write_text(json.dumps(HONEST))
    for name, answer in answers().items():
        (folder / name).write_bytes(answer)


@pytest.fixture
def ssh() -> Iterator[str]:
    """A PATH whose ssh lets that user into the guest NAME."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        play(folder)
        plays = f"ForceCommand {sys.executable} -I -S {HERE / 'ssh_guest.py'} {folder}"
        with sshd(folder, plays) as server:
            path = ssh_on_path(server, server.port)
            os.chown(server.key, NOBODY, NOBODY)
            yield path


@contextlib.contextmanager
def agent(folder: Path) -> Iterator[Path]:
    """An agent's socket, which that user may open."""
    play(folder)
    socket = folder / "agent.sock"
    program = [sys.executable, "-I", "-S", str(HERE / "fake_agent.py"), str(socket), str(folder)]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as process:
        try:
            until(socket.exists)
            socket.chmod(0o666)
            yield socket
        finally:
            process.kill()


def finished(done: "subprocess.CompletedProcess[str]", *, traced: bool) -> None:
    """The run went on to its end; that the played guest's stamps are invented, it may tell."""
    assert done.returncode in (0, 4), done.stderr
    result = json.loads(done.stdout)
    assert result["complete"], done.stderr
    [row] = result["scenarios"]
    assert row["sent"] == COUNT
    assert (result["observer"] is not None) == traced


def test_run_by_ssh_with_just_these(guest: Guest, ssh: str, theirs: Path) -> None:
    words = (*STORM, "--vm", f"pid:{guest.pid}", "--via", f"ssh://{NAME}")
    done = run(*words, "-o", str(theirs / "r"), capabilities=(*TRACE, *LOOK), path=ssh)
    finished(done, traced=True)


@pytest.mark.parametrize("name", TRACE)
def test_run_by_ssh_names_what_is_missing(name: str, guest: Guest, ssh: str, theirs: Path) -> None:
    words = (*STORM, "--vm", f"pid:{guest.pid}", "--via", f"ssh://{NAME}", "-o", str(theirs / "r"))
    done = run(*words, capabilities=without((*TRACE, *LOOK), name), path=ssh)
    assert done.returncode == 3
    assert f"missing: CAP_{name.upper()}." in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", LOOK)
def test_a_vm_that_cannot_be_seen_is_not_measured(
    name: str, guest: Guest, ssh: str, theirs: Path
) -> None:
    words = (*STORM, "--vm", f"pid:{guest.pid}", "--via", f"ssh://{NAME}", "-o", str(theirs / "r"))
    done = run(*words, capabilities=without((*TRACE, *LOOK), name), path=ssh)
    assert done.returncode == 2
    assert f"(this needs CAP_{name.upper()})" in " ".join(done.stderr.split())


def test_by_ssh_untraced_with_nothing(ssh: str, theirs: Path) -> None:
    words = (*STORM, "--vm", "guest1", "--no-trace", "--via", f"ssh://{NAME}")
    finished(run(*words, "-o", str(theirs / "r"), capabilities=(), path=ssh), traced=False)
    asked = ("guest", "status", "--vm", "guest1", "--via", f"ssh://{NAME}")
    assert run(*asked, capabilities=(), path=ssh).returncode == 0


def test_run_by_an_agent_s_socket_with_just_these(guest: Guest, theirs: Path) -> None:
    with agent(theirs) as socket:
        words = (*STORM, "--vm", f"pid:{guest.pid}", "--via", f"qga://{socket}")
        done = run(*words, "-o", str(theirs / "r"), capabilities=(*TRACE, *LOOK))
        finished(done, traced=True)
        socket.chmod(0o600)  # root's
        done = run(*words, "-o", str(theirs / "s"), capabilities=(*TRACE, *LOOK))
        assert done.returncode == 3
        assert "Permission denied" in done.stderr


@pytest.mark.parametrize("fewer", ["", "setuid", "setgid"])
def test_run_by_the_vm_s_own_agent(fewer: str, tmp_path: Path, theirs: Path) -> None:
    """Another user's VM: ipitrace becomes that user for an instant."""
    needed = (*TRACE, *LOOK, "setuid", "setgid")
    place = place_of_agent(theirs)
    with vmm_with_agent(tmp_path, place) as process:
        asked = (*STORM, "--vm", f"pid:{process.pid}", "-o", str(theirs / "r"))
        done = run(*asked, capabilities=without(needed, fewer))
        if fewer:
            assert done.returncode == 3
            assert f"missing: CAP_{fewer.upper()}." in " ".join(done.stderr.split())
            return
        finished(done, traced=True)
        # Its name is none that a VM may have, and the run says so.
        assert f"odd: pid {process.pid}" in done.stderr
        dry = run(*asked, "--dry-run", capabilities=needed)
        assert f"odd: pid {process.pid}" in dry.stdout


def test_run_by_the_agent_of_a_vm_that_has_a_root_of_its_own(tmp_path: Path, theirs: Path) -> None:
    needed = (*TRACE, *LOOK, "setuid", "setgid", "sys_chroot")
    place = place_of_agent(theirs)
    started_by = ("unshare", "--mount", "sh", "-ec", _ELSEWHERE, "sh", str(place))
    with vmm_with_agent(tmp_path, Path("/only-here"), started_by) as process:
        asked = (*STORM, "--vm", f"pid:{process.pid}", "-o", str(theirs / "r"))
        done = run(*asked, capabilities=without(needed, "sys_chroot"))
        assert done.returncode == 3
        assert "missing: CAP_SYS_CHROOT." in " ".join(done.stderr.split())
        finished(run(*asked, capabilities=needed), traced=True)


def place_of_agent(theirs: Path) -> Path:
    """A folder of the VM's owner, with what its agent answers."""
    place = theirs.parent / "vm"
    place.mkdir()
    os.chown(place, OTHER, OTHER)
    play(place)
    return place


@contextlib.contextmanager
def vmm_with_agent(
    programs: Path, place: Path, started_by: Sequence[str] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """A VMM of user OTHER, whose agent listens in `place`."""
    socket = place / "agent.sock"
    serving = _AGENT.format(
        socket=str(socket), folder=str(place), program=str(HERE / "fake_agent.py")
    )
    qemu = python_named(programs, "qemu-system-x86_64")
    chardev = f"socket,path={socket},server=on,id=agent"
    words = ("-name", "pid:1", "-chardev", chardev, "-device", PORT)
    with vmm(*words, program=qemu, uid=OTHER, odd=serving, started_by=started_by) as process:
        yield process
