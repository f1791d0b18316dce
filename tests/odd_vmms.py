# SPDX-License-Identifier: Apache-2.0
"""Real processes that hold real VMs and do with the rest what they like, as any user may."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from other_user import NOBODY, reachable

# Opens /dev/kvm (as root), becomes another user, makes a VM with one vCPU whose thread has
# run it once, and then does what the second argument says (Python). The first is its uid.
_VMM = """
import fcntl, mmap, os, sys, threading, time
uid = int(sys.argv[1])
kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    import ctypes
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as a program just started is
vm = fcntl.ioctl(kvm, 0xAE01, 0)
fcntl.ioctl(vm, 0xAE60, 0)
vcpu = fcntl.ioctl(vm, 0xAE41, 0)
page = mmap.mmap(vcpu, 4096)
page[1] = 1
def enter():
    try:
        fcntl.ioctl(vcpu, 0xAE80, 0)
    except InterruptedError:
        pass
    ran.set()
    threading.Event().wait()
ran = threading.Event()
threading.Thread(target=enter, daemon=True).start()
ran.wait()
exec(os.environ.get("ODD", ""))
print("ready", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def vmm(
    *argv: str,
    uid: int = NOBODY,
    odd: str = "",
    program: Path | None = None,
    cwd: str = "/",
    started_by: Sequence[str] = (),
) -> Iterator["subprocess.Popen[str]"]:
    """A VMM of user `uid`; `argv` is what its command line goes on with, `odd` what else it does.

    `started_by` is a command that becomes the VMM by execve(2) at last.

    `program` is a link to Python by another name, which /proc/PID/exe does not show, so what
    reads the name takes a copy (see python_named()).
    """
    words = [*started_by, str(program or sys.executable), "-S", "-c", _VMM, str(uid), *argv]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "ODD": odd, "LANG": "C.UTF-8"},
        cwd=cwd,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def python_named(folder: Path, name: str) -> Path:
    """This Python's interpreter as an executable of that name, for programs told by theirs."""
    if not os.access("/dev/kvm", os.R_OK):
        pytest.skip("no /dev/kvm")
    path = folder / name
    shutil.copy2(Path(sys.executable).resolve(), path)
    path.chmod(0o755)
    return path


def run_as(
    words: Sequence[str], *, uid: int = 0, capabilities: Sequence[str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """ipitrace as user `uid`, with these capabilities and no others where they are given."""
    command = [sys.executable, "-m", "ipitrace", *words]
    if capabilities is not None:
        kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
        command = [
            *reachable(),
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
            *(f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}"),
            *command,
        ]
    root = Path(__file__).parents[1]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), "HOME": "/nonexistent"},
    )
