# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch` in a process of its own: what it says of each VM, and what it uses."""

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from host_state import IPITRACE
from judging import Usage

LOOKS_WITHIN_S = 60.0
"""How long a VM that waits may go unseen: `watch` looks for new VMs now and then."""


class Watch:
    """The process, and a thread that reads what it prints."""

    def __init__(self, cwd: Path, temporary: Path, environment: dict[str, str]) -> None:
        self.metrics = cwd / "totals"
        self._temporary = temporary
        self._complaints = (cwd / "watch.stderr").open("w+")
        words = ["watch", "--interval", "1", "--json", "--openmetrics", str(self.metrics)]
        self.process = subprocess.Popen(
            [*IPITRACE, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self._changed = threading.Condition()
        self._last: dict[str, Any] = {}
        self._began_s = 0.0
        self.intervals = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self._complaints.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            interval = json.loads(line)
            with self._changed:
                self._last = interval
                # When it came says how old its counts can be at most.
                self._began_s = time.monotonic() - interval["duration_s"]
                self.intervals += 1
                self._changed.notify_all()

    def interval_after_now(self) -> dict[str, Any]:
        """The first interval that begins after this call.

        Raises:
            RuntimeError: there is none within a minute.
        """
        now_s = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(lambda: self._began_s > now_s, LOOKS_WITHIN_S):
                raise RuntimeError(f"watch is silent: {self.complaints()}")
            return self._last

    def vm_after_now(self, pid: int, *, within_s: float) -> dict[str, Any] | None:
        """What is said of that VM in an interval that begins after this call."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            for vm in self.interval_after_now()["vms"]:
                if vm["pid"] == pid:
                    return dict(vm)
        return None

    def complaints(self) -> str:
        return Path(self._complaints.name).read_text()

    def usage(self) -> Usage:
        """What it has now."""
        proc = Path(f"/proc/{self.process.pid}")
        (rss_kib,) = re.findall(r"^VmRSS:\s+(\d+)", (proc / "status").read_text(), re.MULTILINE)
        threads = list((proc / "task").iterdir())
        children = [(task / "children").read_text().split() for task in threads]
        return Usage(
            rss_bytes=int(rss_kib) << 10,
            descriptors=sum(
                not _of_a_running_process(info) for info in (proc / "fdinfo").iterdir()
            ),
            threads=len(threads),
            children=sum(map(len, children)),
            bpf_objects=len(set(_bpf_objects(proc))),
            mounts=len((proc / "mountinfo").read_text().splitlines()),
            temporary_files=len(list(self._temporary.iterdir())),
        )

    def usage_at_rest(self) -> Usage:
        """The least of each over two intervals: by then it lets go of VMs that ended."""
        samples = []
        for _ in range(25):
            samples.append(self.usage())
            time.sleep(0.1)
        least = (min(getattr(s, name) for s in samples) for name in Usage.__dataclass_fields__)
        return Usage(*least)

    def end(self) -> int:
        """Tell it to end; its exit code."""
        self.process.terminate()
        return self.process.wait(LOOKS_WITHIN_S)


def _of_a_running_process(fd: Path) -> bool:
    """Whether it is of a process that still runs: watch holds some for each VM that it sees.

    Others' VMs come and go as they like. What is kept too long is of an ended process: a pidfd's
    fdinfo then shows the pid -1 (pidfd_show_fdinfo() in fs/pidfs.c), and a file of /proc a thread
    that is not there.
    """
    with suppress(OSError):
        opened = re.match(r"/proc/[0-9]+(/task/[0-9]+)?", str(fd.readlink()))
        if opened is not None:
            return Path(opened[0]).exists()
        info = (fd.parents[1] / "fdinfo" / fd.name).read_text()
        return bool(re.search(r"^Pid:\s+[1-9]", info, re.MULTILINE))
    return False


def _bpf_objects(proc: Path) -> Iterator[str]:
    for info in (proc / "fdinfo").iterdir():
        with suppress(OSError):
            yield from re.findall(r"^(?:prog|map|link)_id:\s*\d+", info.read_text(), re.MULTILINE)
