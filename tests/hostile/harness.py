# SPDX-License-Identifier: Apache-2.0
"""What every suite with a hostile guest shares: ipitrace really run, watched from outside.

A mode is one way for a guest to misbehave. Its suite plays it, `run_ipitrace` runs the real
command line against it and sees how that ends, and `assert_harmless` says what must hold of
every mode. Modes mostly wait, so a suite runs several at once, ahead of its tests: `Ahead`.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Generic, Self, TypeVar

import numpy as np

import ipitrace
from ipitrace.abi.storm import ABI_VERSION, FILE, FILE_MAGIC, RECEIPT, SEND, StormState
from ipitrace.base.errors import ExitCode
from ipitrace.base.units import MIB

HERE: Final = Path(__file__).parent
MOST_MEMORY: Final = 512 * MIB
MOST_WRITTEN: Final = 8 * MIB
"""Of all files that ipitrace and its children hold open for writing."""

BAD_ENDS: Final = frozenset({ExitCode.USAGE, ExitCode.ENVIRONMENT, ExitCode.UNTRUSTWORTHY})
AT_ONCE: Final = 8
"""Modes played at the same time; most of them wait for a deadline."""

_LAUNCHER: Final = """\
import os, sys
said = int(sys.argv[1])
pid = os.fork()
if pid == 0:
    os.close(said)
    os.execv(sys.argv[2], sys.argv[2:])
os.write(said, b"%d\\n" % pid)
_pid, status, usage = os.wait4(pid, 0)
os.write(said, b"%d %d\\n" % (status, usage.ru_maxrss))
"""
"""A small parent for what is measured. A process begins with the peak memory of the one that it
was forked from: exec_mmap() in fs/exec.c adds the memory that execve(2) leaves behind."""

_MARK: Final = "IPITRACE_HOSTILE_RUN"
_LOOK_S: Final = 0.05
_LINGER_S: Final = 3.0
_MOST_SAID: Final = 4000

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How ipitrace ended.

    Attributes:
        code: its exit code; negative for a signal; None when it had to be killed.
        seconds: wall-clock time that it took.
        peak_rss_bytes: the most memory that it or one of its children had at once.
        written_bytes: the most that lay in regular files which they held open for writing,
            those without a name among them.
        left_running: command lines of processes that it started and that outlived it.
        left_files: what lay in its folder for temporary files afterwards.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    peak_rss_bytes: int
    written_bytes: int
    left_running: tuple[str, ...]
    left_files: tuple[str, ...]


def run_ipitrace(
    words: Sequence[str],
    *,
    started_by: Sequence[str] = ("-m", "ipitrace"),
    environment: Mapping[str, str] | None = None,
    limit_s: float = 120.0,
    meanwhile: Callable[[int], None] | None = None,
) -> Outcome:
    """Run `ipitrace` with `words` in an empty folder of its own, and watch it.

    Args:
        words: of the command line.
        started_by: what Python runs with these words.
        environment: added to this process's.
        limit_s: after which it is killed; far more than any bound of ipitrace's own.
        meanwhile: is called with its process id once it runs, in this thread; may signal it.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-", dir="/tmp") as name:
        cwd, scratch = Path(name, "cwd"), Path(name, "tmp")
        cwd.mkdir()
        scratch.mkdir()
        mark = f"{os.getpid()}-{Path(name).name}"
        env = {
            **os.environ,
            **(environment or {}),
            "TMPDIR": str(scratch),
            "PYTHONPATH": str(Path(ipitrace.__file__).parents[1]),
            _MARK: mark,
        }
        out, err = Path(name, "out"), Path(name, "err")
        report, said = os.pipe()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            started_s = time.monotonic()
            launcher = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(said)),
                    *(sys.executable, *started_by, *words),
                ],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                pass_fds=[said],
            )
        os.close(said)
        with launcher, os.fdopen(report) as told:
            pid = int(told.readline())
            with _Watch(pid, known={out, err}) as watch:
                if meanwhile is not None:
                    meanwhile(pid)
                in_time = _ends_in_time(told, pid, started_s + limit_s)
                status, peak_kib = map(int, told.readline().split())
        code = os.waitstatus_to_exitcode(status) if in_time else None
        return Outcome(
            code,
            out.read_text(errors="surrogateescape"),
            err.read_text(errors="surrogateescape"),
            time.monotonic() - started_s,
            peak_kib * 1024,
            watch.most_written,
            _left_running(mark),
            tuple(sorted(str(p.relative_to(scratch)) for p in scratch.rglob("*"))),
        )


def _ends_in_time(told: IO[str], pid: int, deadline_s: float) -> bool:
    """Wait for the launcher's report; kill what it started at the deadline."""
    left_s = max(deadline_s - time.monotonic(), 0)
    ended, _, _ = select.select([told], [], [], left_s)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    return bool(ended)


class _Watch(threading.Thread):
    """Sums up, now and then, what a process and its descendants have in files open to write."""

    def __init__(self, pid: int, known: set[Path]) -> None:
        super().__init__(daemon=True)
        self.most_written = 0
        self._pid = pid
        self._known = {path.stat().st_ino for path in known}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(_LOOK_S):
            sizes = {ino: size for pid in _family(self._pid) for ino, size in _written(pid)}
            total = sum(size for ino, size in sizes.items() if ino not in self._known)
            self.most_written = max(self.most_written, total)


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _written(pid: int) -> Iterator[tuple[int, int]]:
    """Inode and size of each regular file that a process holds open for writing."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mode & 0o200 and entry.is_file():
                    found = entry.stat()
                    yield found.st_ino, found.st_size


def _left_running(mark: str) -> tuple[str, ...]:
    """Command lines of the processes with our mark, once they had time to go."""
    until_s = time.monotonic() + _LINGER_S
    while (left := _marked(mark)) and time.monotonic() < until_s:
        time.sleep(_LOOK_S)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return tuple(left.values())


def _marked(mark: str) -> dict[int, str]:
    found = {}
    sign = f"{_MARK}={mark}".encode()
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with contextlib.suppress(OSError):
                if sign in (place / "environ").read_bytes().split(b"\0"):
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(place.name)] = words.decode(errors="replace")
    return found


def assert_harmless(outcome: Outcome, codes: frozenset[ExitCode] = BAD_ENDS) -> None:
    """What holds of every mode: it ends by itself, says why, and leaves and costs nothing."""
    assert outcome.code is not None, f"it had to be killed after {outcome.seconds:.0f} s"
    assert outcome.code in codes, (outcome.code, outcome.stderr[-_MOST_SAID:])
    assert outcome.left_running == ()
    assert outcome.left_files == ()
    assert outcome.peak_rss_bytes < MOST_MEMORY
    assert outcome.written_bytes < MOST_WRITTEN
    assert "Traceback" not in outcome.stderr
    assert_harmless_text(outcome.stdout)
    assert_harmless_text(outcome.stderr)
    if outcome.code:
        said = [line for line in outcome.stderr.splitlines() if line.startswith("ipitrace: ")]
        assert len(said) == 1, outcome.stderr[:_MOST_SAID]
        assert len(outcome.stderr) < _MOST_SAID


def assert_harmless_text(text: str) -> None:
    """No character that a terminal acts on: C0, C1, DEL, format controls, lone surrogates."""
    odd = {c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs"}}
    assert not odd, sorted(map(ascii, odd))


class Ahead(Generic[T]):
    """Plays modes before their tests ask, several at once."""

    def __init__(self, play: Callable[[T], Outcome], modes: Sequence[T]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._outcomes: list[tuple[T, Future[Outcome]]] = [
            (mode, self._pool.submit(play, mode)) for mode in modes
        ]

    def outcome(self, mode: T) -> Outcome:
        """How ipitrace ended."""
        return next(future for known, future in self._outcomes if known is mode).result()

    def close(self) -> None:
        """Play no more."""
        self._pool.shutdown(cancel_futures=True)


# What an honest guest with two CPUs answers; a mode changes a part of it.

STATUS: Final[dict[str, object]] = {
    "abi_version": ABI_VERSION,
    "helper_version": "1.0",
    "module": {"loaded": True, "version": "1.0", "srcversion": "ABC"},
    "kernel": "6.12.0",
    "n_cpus": 2,
    "online": [0, 1],
    "apic_mode": "x2apic",
    "tsc_khz": 2_000_000,
    "unsupported": {},
}
CPUINFO: Final = "".join(
    f"processor\t: {i}\napicid\t\t: {i}\nflags\t\t: fpu hypervisor\n\n" for i in range(2)
)
HELPER_PATH: Final = "/var/lib/ipitrace/ipitrace-storm"
WARMUP: Final = 100  # pipeline.WARMUP
COUNT: Final = 20
RUN: Final = (
    *("run", "--no-trace", "--scenario", "unicast-running"),
    *("--count", str(COUNT), "--repeat", "1", "--force", "-o", "recording"),
)
"""What the modes that concern storms run, before --vm and --via."""


def records(total: int = WARMUP + COUNT) -> bytes:
    """The records of an honest unicast storm of `total` sends to CPU 1."""
    header = np.zeros(1, FILE)
    header["magic"], header["abi_version"] = FILE_MAGIC, ABI_VERSION
    header["header_bytes"] = FILE.itemsize
    header["n_vcpus"], header["vector"], header["tsc_khz"] = 2, 0xEC, 2_000_000
    header["n_sends"] = total
    header["status"]["state"], header["status"]["sent"] = StormState.DONE, total
    header["status"]["as_asked"] = total
    sends, receipts = np.zeros(total, SEND), np.zeros(total, RECEIPT)
    starts = 10**12 + 1_000_000 * np.arange(total, dtype="<u8")  # slower than any pace
    sends["send_tsc"], sends["sent_tsc"] = starts, starts + 1500
    sends["ack_tsc"] = starts + 9000
    sends["seq"], sends["target"] = np.arange(total), 1
    receipts["handler_tsc"], receipts["eoi_tsc"] = starts + 6000, starts + 6500
    receipts["seq"] = np.arange(total)
    counts = np.array([0, total], "<u8")
    return b"".join(part.tobytes() for part in (header, sends, counts, receipts))


def answers() -> dict[str, bytes]:
    """Honest answers by what is asked: `helper`, `status`, `cpuinfo`, `run`, `look`, `uid`."""
    return {
        "helper": f"{HELPER_PATH}\n".encode(),
        "status": json.dumps(STATUS).encode(),
        "cpuinfo": CPUINFO.encode(),
        "run": records(),
        "look": b"6.12.0\ndebian\n\nno\nnone\n",
        "uid": b"0\n",
    }


SIGNS: Final = {
    "# ipitrace guest senders": "senders",
    "command -v ipitrace-storm": "helper",
    "/proc/cpuinfo": "cpuinfo",
    "/etc/os-release": "look",
    "ipitrace-storm status": "status",
    "ipitrace-storm run": "run",
    "id -u": "uid",
}
"""What in a command tells which of these answers it asks for."""


def asked(command: Sequence[str]) -> str:
    """Which of the answers a command asks for; "" for one that has only to succeed.

    `command` is what ipitrace has the guest run, without what its way in adds.
    """
    text = " ".join(command)
    return next((name for sign, name in SIGNS.items() if sign in text), "")
