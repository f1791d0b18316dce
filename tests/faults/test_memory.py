# SPDX-License-Identifier: Apache-2.0
"""Too little memory: the kernel's OOM killer leaves nothing behind, a limit is told in words."""

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from place import Place, assert_told

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live

A_RUN = ("--scenario", "unicast-running", "--count", 400, "--repeat", 1)
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


@dataclass(frozen=True)
class Group:
    """A control group of the memory controller, version 1 or 2."""

    folder: Path

    def limit(self, limit_bytes: int | None) -> None:
        for name, unlimited in (("memory.max", "max"), ("memory.limit_in_bytes", "-1")):
            if (self.folder / name).exists():
                text = unlimited if limit_bytes is None else str(limit_bytes)
                (self.folder / name).write_text(text)
        swap = self.folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def peak_bytes(self) -> int:
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        pytest.skip("this kernel does not tell a group's peak")

    def kills(self) -> int:
        for name in ("memory.events", "memory.oom_control"):
            if (self.folder / name).exists():
                lines = (self.folder / name).read_text().splitlines()
                return int(dict(line.split() for line in lines)["oom_kill"])
        raise AssertionError

    def through(self) -> tuple[str, ...]:
        """A command that starts another inside."""
        return ("sh", "-ec", f'echo $$ >{self.folder}/cgroup.procs; exec "$@"', "sh")


@pytest.fixture
def group(place: Place) -> Iterator[Group]:  # noqa: ARG001 - is left before that
    name = f"ipitrace-test-{secrets.token_hex(4)}"
    parents = [CGROUPS / "memory"]  # version 1
    if "memory" in _words(CGROUPS / "cgroup.subtree_control"):
        parents = [CGROUPS]
    for parent in parents:
        with suppress(OSError):
            (parent / name).mkdir()
            break
    else:
        pytest.skip("no group of the memory controller can be made here")
    folder = parent / name
    if not any((folder / file).exists() for file in ("memory.max", "memory.limit_in_bytes")):
        folder.rmdir()
        pytest.skip("no group of the memory controller can be made here")
    try:
        yield Group(folder)
    finally:
        deadline_s = time.monotonic() + 20
        while True:
            try:
                folder.rmdir()
            except OSError:  # the last process is still on its way out
                assert time.monotonic() < deadline_s, (folder / "cgroup.procs").read_text()
                time.sleep(0.1)
            else:
                return


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_the_oom_killer_leaves_nothing(place: Place, group: Group) -> None:
    with place.starts("run", *A_RUN, "-o", "rec", through=group.through()) as program:
        assert program.finish() == 0, program.complained
    needed_bytes = group.peak_bytes()
    ended = []
    for share in (0.9, 0.7, 0.5, 0.3):
        group.limit(int(share * needed_bytes))
        kills = group.kills()
        words = ("run", *A_RUN, "-q", "--force", "-o", f"rec-{share}")
        with place.starts(*words, through=group.through()) as program:
            code = program.finish()
            program.assert_gone()
        ended.append(code)
        if code == -signal.SIGKILL:
            assert group.kills() > kills
            made = place.names() - {"rec"}
            assert all(name.startswith(f".rec-{share}.partial-") for name in made)
            for name in made:
                for file in (place.cwd / name).iterdir():
                    file.unlink()
                (place.cwd / name).rmdir()
        elif code == ExitCode.OK:  # what it had in caches was given back
            for file in (place.cwd / f"rec-{share}").iterdir():
                file.unlink()
            (place.cwd / f"rec-{share}").rmdir()
        else:
            assert_told(program, ExitCode.ENVIRONMENT)
    assert -signal.SIGKILL in ended, ended


@pytest.mark.parametrize("limit_mib", [600, 900, 1200])
def test_a_limit_that_is_too_small_is_told(place: Place, limit_mib: int) -> None:
    a_large_run = ("run", "--no-trace", "--vm", "micro:32", "--count", 1_000_000, "-o", "rec")
    with place.starts(*a_large_run, through=("prlimit", f"--as={limit_mib * MIB}")) as program:
        program.finish()
    assert_told(program, ExitCode.ENVIRONMENT)
    # The second where it is known beforehand, the third where threads get no stack.
    assert any(said in program.complained for said in ("memory", "address space", "ulimit -v"))
    assert place.names() == set()
