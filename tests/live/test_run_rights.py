# SPDX-License-Identifier: Apache-2.0
"""Who may run `ipitrace run`, and what it needs: rights, bcc, BPF and tracefs."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CHECKOUT, ENVIRONMENT, ipi
from other_user import NOBODY, as_user, open_folder
from run_results import FEW, assert_fine, assert_told, privately, run_json

from ipitrace.base.errors import ExitCode, HostError
from ipitrace.tracer.bcc_import import import_bcc

pytestmark = pytest.mark.live


def importing(*folders: Path) -> dict[str, str]:
    """The variables of a process that looks for packages in these folders first."""
    return ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, CHECKOUT)))}


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory where nobody may write, below one that nobody may enter."""
    with open_folder() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield folder


KVM_FOR_ALL = (
    "mount -t tmpfs none /mnt; mknod -m 666 /mnt/kvm c 10 232; mount --bind /mnt/kvm /dev/kvm"
)
KVM_FOR_ROOT = KVM_FOR_ALL.replace("666", "600")


@pytest.mark.live("kvm", "root")
def test_a_directory_that_cannot_be_written_to(nobodys: Path) -> None:
    through = (*privately(KVM_FOR_ALL), *as_user())
    (nobodys / "roots").mkdir(mode=0o755)
    (nobodys / "closed").mkdir(mode=0o700)
    for where in ("roots/a", "roots/a/b", "closed/a", "closed/a/b", "x" * 300):
        done = ipi("run", "--no-trace", *FEW, "-o", where, cwd=nobodys, through=through)
        assert_told(done, ExitCode.ENVIRONMENT, f"cannot be written to {where}", "-o")


# Who may run it.


@pytest.mark.live("kvm", "root")
def test_nobody_may_not_trace(nobodys: Path) -> None:
    done = ipi("run", *FEW, cwd=nobodys, through=(*privately(KVM_FOR_ALL), *as_user()))
    assert_told(done, ExitCode.ENVIRONMENT, "root", "sudo", "--no-trace")


@pytest.mark.live("kvm", "root")
def test_nobody_may_measure_where_kvm_is_open_to_all(nobodys: Path) -> None:
    through = (*privately(KVM_FOR_ALL), *as_user())
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=nobodys, through=through)
    assert_fine(done)
    run_json(nobodys / "here")


@pytest.mark.live("kvm", "root")
@pytest.mark.parametrize("how", [(), ("--no-trace",)])
def test_nobody_may_not_open_kvm(nobodys: Path, how: tuple[str, ...]) -> None:
    done = ipi("run", *how, *FEW, cwd=nobodys, through=(*privately(KVM_FOR_ROOT), *as_user()))
    assert_told(done, ExitCode.ENVIRONMENT, "/dev/kvm", "sudo")
    assert not list(nobodys.iterdir())


NO_DEV = "mount -t tmpfs none /mnt; mknod -m 666 /mnt/null c 1 3; mount --bind /mnt /dev"


@pytest.mark.live("kvm", "root")
@pytest.mark.parametrize(
    ("setup", "words"),
    [("mount --bind /dev/null /dev/kvm", "not the KVM device"), (NO_DEV, "KVM is not available")],
)
def test_no_kvm(setup: str, words: str, tmp_path: Path) -> None:
    for how in ((), ("--no-trace",)):
        done = ipi("run", *how, *FEW, cwd=tmp_path, through=privately(setup))
        assert_told(done, ExitCode.ENVIRONMENT, words, "/dev/kvm")
    assert not list(tmp_path.iterdir())


# bcc, BPF and tracefs.


@pytest.fixture(scope="module")
def without_bcc() -> str:
    """The mount that hides the distribution's bcc."""
    try:
        directory = Path(str(import_bcc().__file__)).parent
    except HostError:
        return ":"
    return f"mount -t tmpfs none {directory}"


@pytest.fixture
def wrong_bcc(tmp_path: Path) -> Path:
    """PyPI's bcc, as far as it matters: a package of the name without `BPF`."""
    package = tmp_path / "lattices" / "bcc"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("LATTICE = 'body-centred cubic'\n")
    return package.parent


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.live("kvm", "root")
def test_without_bcc_one_cannot_trace(without_bcc: str, tmp_path: Path) -> None:
    done = ipi("run", *FEW, cwd=tmp_path, through=privately(without_bcc))
    assert_told(done, ExitCode.ENVIRONMENT, "bcc", "not installed", "python3-bpfcc")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.live("kvm", "root")
def test_without_bcc_one_can_measure(without_bcc: str, tmp_path: Path) -> None:
    through = privately(without_bcc)
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path, through=through)
    assert_fine(done)
    run_json(tmp_path / "here")


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.live("kvm", "root")
def test_the_wrong_bcc_alone(without_bcc: str, wrong_bcc: Path, tmp_path: Path) -> None:
    done = ipi("run", *FEW, cwd=tmp_path, through=privately(without_bcc), env=importing(wrong_bcc))
    assert_told(done, ExitCode.ENVIRONMENT, "bcc", "PyPI's bcc is an unrelated package")


@pytest.mark.usefixtures("fresh_cache")
def test_the_wrong_bcc_before_the_right_one(wrong_bcc: Path, tmp_path: Path) -> None:
    done = ipi("run", *FEW, "-o", "here", cwd=tmp_path, env=importing(wrong_bcc))
    assert_fine(done)
    assert run_json(tmp_path / "here")["observer"]["hooks"]


def without(*capabilities: str) -> tuple[str, ...]:
    dropped = ",".join(f"-{name}" for name in capabilities)
    return ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")


def test_root_without_the_capabilities(tmp_path: Path) -> None:
    done = ipi("run", *FEW, cwd=tmp_path, through=without("sys_admin", "bpf", "perfmon"))
    assert_told(done, ExitCode.ENVIRONMENT, "CAP_BPF", "outside of the container", "--no-trace")


REFUSE_BPF = """
import ctypes, os, struct, sys
# seccomp: load the number; if it is bpf's (321), return EPERM; else allow.
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 321, 0x06, 0, 0, 0x50001,
                   0x06, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_kernel_that_refuses_bpf(tmp_path: Path) -> None:
    """As under a container's default seccomp profile."""
    done = ipi("run", *FEW, cwd=tmp_path, through=(sys.executable, "-c", REFUSE_BPF))
    assert_told(done, ExitCode.ENVIRONMENT, "BPF")
    assert not list(tmp_path.iterdir())


NO_TRACEFS = (
    "for at in /sys/kernel/tracing /sys/kernel/debug; do"
    ' ! grep -q " $at " /proc/self/mountinfo || umount -l $at; done'
)


def test_without_tracefs_and_without_the_right_to_mount_it(tmp_path: Path) -> None:
    """CAP_BPF and CAP_PERFMON are enough for what raw tracepoints offer."""
    through = (*privately(NO_TRACEFS), *without("sys_admin"))
    done = ipi("run", *FEW, "-v", "-o", "here", cwd=tmp_path, through=through)
    if done.returncode == 0:
        run = run_json(tmp_path / "here")
        assert run["scenarios"][0]["events_per_ipi"]["kvm_apic_ipi"]["sender"] == 1.0
        assert "classic" not in run["observer"]["hooks"].values()
    else:
        assert_told(done, ExitCode.ENVIRONMENT)
