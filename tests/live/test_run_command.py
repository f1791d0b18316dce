# SPDX-License-Identifier: Apache-2.0
"""`ipitrace` as people start it: what it prints, what it leaves, how it exits."""

import contextlib
import ctypes
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checks import assert_sound
from other_user import NOBODY, as_user, open_folder

import ipitrace
from ipitrace.base.errors import ExitCode, HostError
from ipitrace.storm.micro.driver import unsupported
from ipitrace.tracer.bcc_import import import_bcc
from ipitrace.words.scenarios import SCENARIOS

pytestmark = pytest.mark.live

CHECKOUT = Path(ipitrace.__file__).parents[1]
IPITRACE = (sys.executable, "-m", "ipitrace")
FEW = ("--scenario", "self", "--count", "40")


def environment(python_path: Sequence[Path] = ()) -> dict[str, str]:
    path = os.pathsep.join(map(str, (*python_path, CHECKOUT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def ipi(
    *arguments: str,
    cwd: Path,
    through: Sequence[str] = (),
    python_path: Sequence[Path] = (),
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run ipitrace to its end, started by the command `through`."""
    return subprocess.run(
        [*through, *IPITRACE, *arguments],
        cwd=cwd,
        env=environment(python_path),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )


def privately(setup: str) -> tuple[str, ...]:
    """A command that runs another in a mount namespace of its own, changed by `setup`."""
    return ("unshare", "--mount", "sh", "-ec", f'{setup}\nexec "$@"', "sh")


WROTE = re.compile(r"Wrote \S+/run\.json\n")
FILES = {"run.json", "SHA256SUMS", "host_events.parquet", "guest_ipis.parquet", "spans.parquet"}


def assert_fine(done: subprocess.CompletedProcess[str], *, quiet: bool = False) -> None:
    """It succeeded and had nothing to say but where the recording is."""
    assert done.returncode == ExitCode.OK, done.stderr
    assert re.fullmatch("" if quiet else WROTE, done.stderr), done.stderr


def assert_told(
    done: subprocess.CompletedProcess[str], code: ExitCode, *words: str, recorded: bool = False
) -> None:
    """It failed as agreed: this code, one sentence, one hint, these words in them."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    said = WROTE.sub("", done.stderr, count=1) if recorded else done.stderr
    lines = said.splitlines()
    assert len(lines) == 2, done.stderr
    # A sentence, or one that begins with a name as it was typed.
    assert re.match(r"ipitrace: ([A-Z/'-]|here ).*[.:?!]$", lines[0]), lines[0]
    assert re.match(r"          \S.*[.:?!]$", lines[1]), lines[1]
    for word in words:
        assert word in said, said
    if not recorded:
        assert done.stdout in {"", None}


def run_json(directory: Path) -> dict[str, Any]:
    """The run of a whole recording, which holds nothing else."""
    run = json.loads((directory / "run.json").read_text())
    assert_sound(run)
    names = {path.name for path in directory.iterdir()}
    assert {"run.json", "SHA256SUMS"} <= names <= FILES
    assert {f"{table}.parquet" for table in run["tables"]} == names - {"run.json", "SHA256SUMS"}
    return dict(run)


# What a run leaves.


def program_ids() -> set[int]:
    """Every loaded BPF program, by id."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    ids, attr = set(), (ctypes.c_uint32 * 4)()
    while syscall(321, 11, attr, ctypes.sizeof(attr)) == 0:  # BPF_PROG_GET_NEXT_ID
        attr[0] = attr[1]
        ids.add(int(attr[0]))
    return ids


@pytest.fixture
def _host_is_left_as_it_was() -> Iterator[None]:
    mounts = Path("/proc/self/mountinfo").read_text()
    programs = program_ids()
    yield
    assert Path("/proc/self/mountinfo").read_text() == mounts
    # A program is freed some time after its last user has gone.
    deadline_s = time.monotonic() + 20
    while leaked := leaked_programs(programs):
        assert time.monotonic() < deadline_s, leaked
        time.sleep(0.05)


def leaked_programs(before: set[int]) -> set[int]:
    """Programs loaded since, that no living process holds."""
    new = program_ids() - before
    if not new:
        return set()
    held: set[int] = set()
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            held |= set(map(int, re.findall(r"^prog_id:\s*(\d+)", info.read_text(), re.MULTILINE)))
    return new - held


@pytest.mark.usefixtures("_host_is_left_as_it_was")
def test_a_traced_run(tmp_path: Path) -> None:
    done = ipi("run", "--count", "60", "-o", "here", cwd=tmp_path)
    assert_fine(done)
    run = run_json(tmp_path / "here")
    rows = {row["name"]: row for row in run["scenarios"]}
    assert list(rows) == ["unicast-running", "unicast-halted", "self", "broadcast"]
    for row in rows.values():
        assert (row["sent"], row["delivered"], row["incomplete"]) == (60, 60, 0)
        assert row["repetitions"] == 6
        assert row["events_per_ipi"]["kvm_apic_ipi"] == {"sender": 1.0, "target": 0.0}
        assert row["name"] in done.stdout
    assert run["complete"]
    assert run["observer"]["repetitions"] == 6
    assert set(run["observer"]["costs"]) == set(rows)
    assert "Observer cost" in done.stdout
    assert run["command"] == ["run", "--count", "60", "-o", "here"]
    assert done.stderr == "Wrote here/run.json\n"
    for table in ("guest_ipis", "host_events", "spans"):
        assert run["tables"][table]["rows"] > 0
    assert run["tables"]["spans"]["rows"] == 4 * 60


@pytest.mark.live("kvm")
def test_json_is_one_document_and_the_file(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, "--json", "-o", "here", cwd=tmp_path)
    assert_fine(done, quiet=True)
    assert json.loads(done.stdout) == run_json(tmp_path / "here")
    assert done.stdout == (tmp_path / "here" / "run.json").read_text()


def test_json_of_a_traced_run(tmp_path: Path) -> None:
    done = ipi("run", *FEW, "--json", "-o", "here", cwd=tmp_path)
    assert_fine(done, quiet=True)
    assert json.loads(done.stdout) == run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_quiet_prints_nothing(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, "-q", "-o", "here", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_the_default_directory(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, cwd=tmp_path)
    assert done.returncode == 0
    (made,) = tmp_path.iterdir()
    assert re.fullmatch(r"ipitrace-\d{8}-\d{6}", made.name)
    assert done.stderr == f"Wrote {made.name}/run.json\n"


@pytest.mark.live("kvm")
def test_the_whole_table_of_scenarios(tmp_path: Path) -> None:
    done = ipi(
        *("run", "--no-trace", "--scenario", "all", "--count", "20", "-o", "here"), cwd=tmp_path
    )
    assert_fine(done)
    rows = run_json(tmp_path / "here")["scenarios"]
    assert [row["name"] for row in rows] == [scenario.name for scenario in SCENARIOS]
    cannot = {row["name"] for row in rows if row["status"] == "unsupported"}
    assert cannot == {scenario.name for scenario in SCENARIOS if unsupported(scenario)}
    for row in rows:
        if row["name"] in cannot:
            assert f"{row['name']}: {row['reason']}" in " ".join(done.stdout.split())
        else:
            assert row["sent"] == row["delivered"] == 20


@pytest.mark.live("kvm")
def test_more_vcpus_than_cpus_is_said(tmp_path: Path) -> None:
    n = max(len(os.sched_getaffinity(0)) + 1, 4)
    done = ipi(
        *("run", "--no-trace", "--vm", f"micro:{n}", "--scenario", "broadcast", "--count", "1"),
        *("-o", "here"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = run_json(tmp_path / "here")
    assert run["host"]["pinning"]["overcommitted"]
    assert run["guest"]["pinned_cpus"] is None
    (row,) = run["scenarios"]
    assert (row["sent"], row["delivered"], row["targets"]) == (1, n - 1, n - 1)
    assert "measure the scheduler" in " ".join(done.stdout.split())


# What cannot be asked for.

USAGE = {
    "unknown scenario": (("--scenario", "unicast-runing"), ("Did you mean unicast-running",)),
    "outlandish scenario": (("--scenario", "x"), ("There is no scenario 'x'", "broadcast")),
    "no count": (("--count", "0"), ("--count 0 is out of range", "1 to")),
    "negative count": (("--count", "-5"), ("--count -5 is out of range",)),
    "too many in all": (
        ("--scenario", "all", "--repeat", "1000"),
        ("and a recording holds at most 4000",),
    ),
    "huge count": (("--count", str(10**12)), (f"--count {10**12} is out of range",)),
    "count beyond any integer": (("--count", str(10**40)), ("is out of range",)),
    "count in words": (("--count", "abc"), ("abc", "--help")),
    "negative pace": (("--pace", "-1"), ("--pace -1 is out of range",)),
    "pace in words": (("--pace", "slow"), ("slow",)),
    "other guest": (("--vm", "guestX"), ("There is no VM 'guestX'", "--vm micro")),
    "guest without a number": (("--vm", "micro:"), ("micro:",)),
    "one vcpu": (("--vm", "micro:1"), ("cannot have 1 vCPUs",)),
    "no vcpu": (("--vm", "micro:0"), ("cannot have 0 vCPUs",)),
    "too many vcpus": (("--vm", "micro:999"), ("cannot have 999 vCPUs", "2 to 64")),
    "unknown option": (("--fast",), ("--fast",)),
    "stray word": (("fast",), ("fast",)),
    "unknown fault": (("--inject", "flood"), ("flood",)),
}


@pytest.mark.live("kvm")
@pytest.mark.parametrize("what", USAGE)
def test_a_bad_request(what: str, tmp_path: Path) -> None:
    arguments, words = USAGE[what]
    done = ipi("run", "--no-trace", *arguments, cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.live("kvm")
def test_an_unknown_verb(tmp_path: Path) -> None:
    assert_told(ipi("rum", cwd=tmp_path), ExitCode.USAGE, "rum")


@pytest.mark.live("kvm")
def test_a_scenario_that_cannot_run_here(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", "--scenario", "ring", cwd=tmp_path)
    assert_told(
        done,
        ExitCode.ENVIRONMENT,
        "'ring' cannot run here",
        "These scenarios can run: unicast-running, unicast-halted, ",
        "ipitrace scenarios",
    )


# Where the recording goes.


@pytest.mark.live("kvm")
def test_a_recording_is_replaced_only_by_force(tmp_path: Path) -> None:
    assert ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path).returncode == 0
    old = (tmp_path / "here" / "run.json").read_text()
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, "already holds a recording", "--force")
    assert (tmp_path / "here" / "run.json").read_text() == old
    assert ipi("run", "--no-trace", *FEW, "-o", "here", "--force", cwd=tmp_path).returncode == 0
    assert run_json(tmp_path / "here") != json.loads(old)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.live("kvm")
def test_a_file_is_no_place_for_a_recording(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("old")
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, "is not a directory")
    assert (tmp_path / "here").read_text() == "old"


@pytest.mark.live("kvm")
def test_a_run_that_fails_leaves_a_users_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = ipi("run", "--no-trace", "--scenario", "ring", "-o", "mine", cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert (tmp_path / "mine").is_dir()


@pytest.mark.live("kvm", "root")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    full = "mount -t tmpfs -o size=8k none small; head -c 6000 /dev/zero > small/full"
    done = ipi(
        *("run", "--no-trace", *FEW, "-q", "-o", "small/here"),
        cwd=tmp_path,
        through=privately(full),
    )
    assert_told(done, ExitCode.ENVIRONMENT, "cannot be written", "o space left", "Free space")


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


@pytest.mark.live("kvm", "root")
def test_without_bcc_one_cannot_trace(without_bcc: str, tmp_path: Path) -> None:
    done = ipi("run", *FEW, cwd=tmp_path, through=privately(without_bcc))
    assert_told(done, ExitCode.ENVIRONMENT, "bcc", "not installed", "python3-bpfcc")
    assert not list(tmp_path.iterdir())


@pytest.mark.live("kvm", "root")
def test_without_bcc_one_can_measure(without_bcc: str, tmp_path: Path) -> None:
    through = privately(without_bcc)
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path, through=through)
    assert_fine(done)
    run_json(tmp_path / "here")


@pytest.mark.live("kvm", "root")
def test_the_wrong_bcc_alone(without_bcc: str, wrong_bcc: Path, tmp_path: Path) -> None:
    done = ipi("run", *FEW, cwd=tmp_path, through=privately(without_bcc), python_path=[wrong_bcc])
    assert_told(done, ExitCode.ENVIRONMENT, "bcc", "PyPI's bcc is an unrelated package")


def test_the_wrong_bcc_before_the_right_one(wrong_bcc: Path, tmp_path: Path) -> None:
    done = ipi("run", *FEW, "-o", "here", cwd=tmp_path, python_path=[wrong_bcc])
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


# What goes wrong while it runs.


@pytest.mark.usefixtures("_host_is_left_as_it_was")
@pytest.mark.parametrize(
    ("fault", "words", "how"),
    [
        ("triple-fault", "triple-faulted", ()),
        ("triple-fault", "triple-faulted", ("--no-trace",)),
        ("hang", "The guest hung", ()),
    ],
)
def test_a_guest_that_dies(fault: str, words: str, how: tuple[str, ...], tmp_path: Path) -> None:
    done = ipi("run", *how, *FEW, "--inject", fault, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.UNTRUSTWORTHY, words, recorded=True)
    run = run_json(tmp_path / "here")
    assert not run["complete"]
    assert words in run["failure"]
    assert run["scenarios"] == []
    assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize(("count", "how"), [(2, ()), (20, ("--no-trace",))])
def test_lost_ipis_make_the_run_untrustworthy(
    count: int, how: tuple[str, ...], tmp_path: Path
) -> None:
    """One in each repetition; where a repetition is of one send, nothing is delivered at all."""
    done = ipi(
        *("run", *how, "--scenario", "unicast-running", "--count", str(count)),
        *("--inject", "lost-ipi", "-o", "here"),
        cwd=tmp_path,
    )
    assert_told(done, ExitCode.UNTRUSTWORTHY, "not acknowledged in time", recorded=True)
    run = run_json(tmp_path / "here")
    (row,) = run["scenarios"]
    lost = row["repetitions"]
    assert row["sent"] == count
    assert (row["incomplete"], row["delivered"], row["coalesced"]) == (lost, count - lost, 0)
    assert (row["deliver_cycles"] is None) == (count == lost)
    assert run["complete"]
    assert run["untrustworthy"]
    assert "DOUBT" in done.stdout


class OnTerminal:
    """ipitrace with its standard error on a terminal."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*IPITRACE, *arguments],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
        )
        os.close(slave)
        self.drawn = ""

    def wait_for(self, pattern: str) -> None:
        """Read until the terminal shows `pattern`."""
        while not re.search(pattern, self.drawn):
            self.drawn += os.read(self._master, 4096).decode()

    def finish(self) -> tuple[int, str]:
        """(exit code, standard output), the terminal read to its end."""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while more := os.read(self._master, 4096).decode():
                self.drawn += more
        os.close(self._master)
        stdout, _ = self.process.communicate(timeout=60)
        return self.process.returncode, stdout


@pytest.mark.usefixtures("_host_is_left_as_it_was")
@pytest.mark.parametrize(("count", "how"), [(5000, ()), (15000, ("--no-trace",))])
def test_an_interrupted_run_keeps_what_was_finished(
    count: int, how: tuple[str, ...], tmp_path: Path
) -> None:
    ran = OnTerminal(
        *("run", *how, "--scenario", "self", "--scenario", "unicast-running"),
        *("--count", str(count), "-o", "here"),
        cwd=tmp_path,
    )
    ran.wait_for(r"\] +[4-7]\d%")
    ran.process.send_signal(signal.SIGINT)
    code, stdout = ran.finish()
    assert code == ExitCode.INTERRUPTED, ran.drawn
    assert "Traceback" not in ran.drawn
    assert "ipitrace: Interrupted." in ran.drawn
    run = run_json(tmp_path / "here")
    assert not run["complete"]
    assert run["failure"] == "Interrupted."
    assert [row["name"] for row in run["scenarios"]] == ["self", "unicast-running"]
    for row in run["scenarios"]:
        assert 1 <= row["repetitions"] < 6
        modes = [figures["mode"] for figures in row["repetition_figures"]]
        assert len({modes.count(mode) for mode in modes}) == 1
    assert "self" in stdout
    assert "Interrupted." in stdout


@pytest.mark.usefixtures("_host_is_left_as_it_was")
def test_an_interrupt_before_the_first_storm(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*IPITRACE, "run", "--count", "200000", "-o", "here"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, stderr
    assert "Traceback" not in stderr
    assert "ipitrace: Interrupted." in stderr


@pytest.mark.live("kvm")
def test_progress_is_drawn_on_a_terminal_and_wiped_away(tmp_path: Path) -> None:
    arguments = ("run", "--no-trace", "--scenario", "self", "--count", "20000", "-o")
    ran = OnTerminal(*arguments, "here", cwd=tmp_path)
    code, stdout = ran.finish()
    assert code == 0
    shares = [int(share) for share in re.findall(r"\] +(\d+)% self", ran.drawn)]
    assert shares
    assert shares == sorted(shares)
    assert shares[-1] <= 100
    assert "Wrote here/run.json" in ran.drawn
    assert ran.drawn.endswith("%\x20self\r\x1b[KWrote here/run.json\r\n")
    assert "%" not in stdout.partition("Cycles per IPI")[0]
    quiet = OnTerminal(*arguments, "there", "--json", cwd=tmp_path)
    assert quiet.finish()[0] == 0
    assert quiet.drawn == ""


@pytest.mark.live("kvm")
def test_no_progress_in_a_pipe(tmp_path: Path) -> None:
    done = ipi(
        *("run", "--no-trace", "--scenario", "self", "--count", "20000", "-o", "here"),
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "here/run.json").read_text())["duration_seconds"] > 1.0
    assert_fine(done)
    assert "\r" not in done.stdout


@pytest.mark.live("kvm")
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--no-trace", *FEW, "-o", "here"),
        ("run", "--no-trace", *FEW, "-o", "here", "--json"),
        ("scenarios",),
        ("--help",),
        ("--version",),
    ],
)
def test_a_reader_that_left(arguments: tuple[str, ...], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = ipi(*arguments, cwd=tmp_path, stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == ExitCode.OK
    assert re.fullmatch(f"({WROTE.pattern})?", done.stderr), done.stderr
    if "run" in arguments:
        run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_a_long_run_whose_reader_is_head(tmp_path: Path) -> None:
    command = 'set -o pipefail; "$@" | head -1'
    done = ipi(
        *("run", "--no-trace", *FEW, "-o", "here"),
        cwd=tmp_path,
        through=("bash", "-c", command, "sh"),
    )
    assert_fine(done)
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.live("kvm")
def test_the_scenarios_are_listed(tmp_path: Path) -> None:
    done = ipi("scenarios", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unicast-running" in done.stdout
    assert not list(tmp_path.iterdir())
