# SPDX-License-Identifier: Apache-2.0
"""What a program can leave on a host behind its back, and a program that is watched for it."""

import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

# Isolated: nothing is imported from the current folder, whatever a test puts there.
IPITRACE: Final = (sys.executable, "-I", "-m", "ipitrace")
GONE_WITHIN_S: Final = 30.0
"""The kernel frees BPF objects, and the init process ended children, some time later."""

_SYS_BPF: Final = 321
# include/uapi/linux/bpf.h: enum bpf_cmd
_NEXT_ID: Final = {"bpf_programs": 11, "bpf_maps": 12, "bpf_links": 31}
_FD_WORDS: Final = {"prog": "programs", "map": "maps", "link": "links"}
_BPF_FD: Final = re.compile(r"^(prog|map|link)_id:\s*(\d+)", re.MULTILINE)
_TRACEFS: Final = """
import json
from ipitrace.tracer.tracefs import ensure_tracefs
tracefs = ensure_tracefs()[0]
read = lambda name: (tracefs / name).read_text()
print(json.dumps({
    "instances": sorted(
        path.name
        for path in (tracefs / "instances").iterdir()
        if not path.name.startswith("ipitrace-test-")  # tests/faults/busy_tracefs.py tidies those
    ),
    "tracer": read("current_tracer"),
    "switched_on": read("set_event"),
    "probes": read("kprobe_events") if (tracefs / "kprobe_events").exists() else "",
}))
"""


def bpf_ids(kind: str) -> frozenset[int]:
    """The ids of all BPF objects of this kind, whoever made them; a name of _NEXT_ID."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    found, attr = set(), (ctypes.c_uint32 * 4)()
    while syscall(_SYS_BPF, _NEXT_ID[kind], attr, ctypes.sizeof(attr)) == 0:
        attr[0] = attr[1]
        found.add(int(attr[0]))
    return frozenset(found)


def held_bpf_ids() -> dict[str, frozenset[int]]:
    """The ids of the BPF objects that living processes have open, by kind."""
    found: dict[str, set[int]] = {kind: set() for kind in _NEXT_ID}
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with suppress(OSError):
            for word, number in _BPF_FD.findall(info.read_text()):
                found[f"bpf_{_FD_WORDS[word]}"].add(int(number))
    return {kind: frozenset(ids) for kind, ids in found.items()}


def open_descriptors() -> dict[str, str]:
    """What is open; the descriptor of the listing itself is gone by the time it is read."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def tracefs_state() -> str:
    """Instances, tracer and switched-on events of the kernel, seen by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _TRACEFS], capture_output=True, text=True, check=True
    )
    return json.dumps(json.loads(done.stdout), sort_keys=True)


@dataclass(frozen=True)
class HostState:
    """All of it, at one moment."""

    bpf_programs: frozenset[int]
    bpf_maps: frozenset[int]
    bpf_links: frozenset[int]
    mounts: frozenset[str]
    tracefs: frozenset[str]

    @classmethod
    def now(cls) -> "HostState":
        return cls(
            **{kind: bpf_ids(kind) for kind in _NEXT_ID},
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            tracefs=frozenset([tracefs_state()]),
        )

    def left_over(self) -> dict[str, frozenset[object]]:
        """What is there now that was not there then, and that no living process holds."""
        now = HostState.now()
        new = {f.name: getattr(now, f.name) - getattr(self, f.name) for f in fields(self)}
        if any(new[kind] for kind in _NEXT_ID):
            held = held_bpf_ids()
            new |= {kind: new[kind] - held[kind] for kind in _NEXT_ID}
        return {name: values for name, values in new.items() if values}

    def assert_restored(self) -> None:
        """Nothing is left of what was made since, once the kernel has cleaned up."""
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while left := self.left_over():
            assert time.monotonic() < deadline_s, left
            time.sleep(0.1)


class Watched:
    """A program whose processes are known by a mark in their environment, and by their session."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._mark = f"IPITRACE_WATCHED={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {}), name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said, self.complained = "", ""

    def finish(self, timeout_s: float = 120) -> int:
        """Wait for its end; its exit code. `said` and `complained` are known then."""
        self.said, self.complained = self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    def kill(self) -> None:
        """kill -9 of its first process alone, as the OOM killer does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def still_there(self) -> dict[int, str]:
        """Its processes that live, with their command lines; of children's children, too."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                marked = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                if session == self.process.pid or marked:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    if command:  # a dead one that nobody waited for has none
                        found[int(entry.name)] = command.decode(errors="replace")
        return found

    def assert_gone(self, within_s: float = GONE_WITHIN_S) -> None:
        """All of its processes end by themselves. What does not is ended here."""
        deadline_s = time.monotonic() + within_s
        while (left := self.still_there()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"{within_s} s after its first process it lives on: {left}"

    def end(self) -> None:
        """For a test that has failed: leave nothing."""
        for pid in {self.process.pid, *self.still_there()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@contextmanager
def watched(
    *arguments: object,
    cwd: Path,
    through: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Watched]:
    """`ipitrace ARGUMENTS`, started by the command `through`, for as long as inside."""
    command = [*through, *IPITRACE, *map(str, arguments)]
    program = Watched(command, cwd=cwd, environment=environment)
    try:
        yield program
    finally:
        program.end()
