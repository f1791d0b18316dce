# SPDX-License-Identifier: Apache-2.0
"""Other programs, really run: bounded in what they say and how long they take, and mortal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from guests import until

from ipitrace.base.errors import HostError
from ipitrace.base.units import KIB, MIB
from ipitrace.host.child import Child, run_bounded

SLEEPER = f"sleep {1000 + os.getpid()}"
"""A command line that no other process has."""

OWNER = """
import sys, time
from pathlib import Path
from ipitrace.host.child import Child
folder, *command = sys.argv[1:]
with Child(command, limit_bytes=1 << 40, folder=Path(folder)) as child:
    print(child._process.pid, flush=True)
    while True:
        child.exchange(0.02)
        child.out.clear()
"""


def sh(script: str, **options: object) -> object:
    return run_bounded(["sh", "-c", script], **{"timeout_s": 30, "limit_bytes": MIB, **options})  # type: ignore[arg-type]


def running(words: str) -> list[int]:
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if " ".join(p.info["cmdline"] or []).endswith(words)]


def test_a_programs_streams_and_status() -> None:
    done = run_bounded(
        ["sh", "-c", "cat; echo ' why ' >&2; exit 7"],
        stdin=b"\0binary\xff",
        timeout_s=30,
        limit_bytes=MIB,
    )
    assert (done.status, done.stdout, done.stderr) == (7, b"\0binary\xff", "why")


def test_a_signal_that_ended_it_is_told() -> None:
    assert run_bounded(["sh", "-c", "kill -9 $$"], timeout_s=30, limit_bytes=0).status == -9


def test_much_goes_both_ways_at_once() -> None:
    much = bytes(range(256)) * 40_000
    done = run_bounded(["cat"], stdin=much, timeout_s=60, limit_bytes=len(much))
    assert done.stdout == much


def test_a_program_that_does_not_read_what_it_is_given() -> None:
    assert run_bounded(["true"], stdin=bytes(MIB), timeout_s=30, limit_bytes=0).status == 0


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HostError, match="no-such-program"):
        run_bounded(["no-such-program"], timeout_s=1, limit_bytes=0)


@pytest.mark.parametrize(("script", "stream"), [("yes", ""), ("yes >&2", " to stderr")])
def test_what_says_too_much_is_ended_and_told(script: str, stream: str) -> None:
    with pytest.raises(HostError, match=f"guest sent more than 64 KiB{stream} in answer to 'ask'"):
        sh(
            script,
            limit_bytes=64 * KIB,
            stderr_limit_bytes=64 * KIB,
            subject="The guest",
            called="ask",
        )


def test_the_limit_itself_is_allowed() -> None:
    done = run_bounded(["head", "-c", "1000", "/dev/zero"], timeout_s=30, limit_bytes=1000)
    assert len(done.stdout) == 1000
    with pytest.raises(HostError, match="more than"):
        run_bounded(["head", "-c", "1001", "/dev/zero"], timeout_s=30, limit_bytes=1000)


def test_a_program_that_takes_too_long_is_ended_with_all_it_started() -> None:
    noticed: list[str] = []
    with pytest.raises(HostError, match="did not end"):
        sh(f"echo started >&2; {SLEEPER} & {SLEEPER}", timeout_s=1, give_up=noticed.append)
    assert noticed == ["started"]
    assert running(SLEEPER) == []


def test_a_program_that_trickles_is_ended_as_well() -> None:
    with pytest.raises(HostError, match="did not end"):
        sh("while echo x; do sleep 0.1; done", timeout_s=1)


def test_a_program_that_ignores_signals_is_ended() -> None:
    with pytest.raises(HostError, match="did not end"):
        sh(f"trap '' TERM INT HUP; {SLEEPER}; {SLEEPER}", timeout_s=1)
    assert running(SLEEPER) == []


def test_what_a_program_leaves_behind_is_ended() -> None:
    started_s = time.monotonic()
    assert (
        run_bounded(["sh", "-c", f"{SLEEPER} & echo done"], timeout_s=60, limit_bytes=MIB).text
        == "done"
    )
    assert running(SLEEPER) == []
    assert time.monotonic() - started_s < 30


def test_an_error_while_it_is_waited_for_ends_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sh(SLEEPER, tick=stop)
    assert running(SLEEPER) == []


def test_a_tick_chooses_the_time_of_the_next() -> None:
    def ticks(pause_s: float | None) -> int:
        called: list[None] = []

        def tick() -> float | None:
            called.append(None)
            return pause_s

        sh("sleep 0.5", tick=tick)
        return len(called)

    assert ticks(60.0) == 1
    usual = ticks(None)
    assert 1 < usual < ticks(0.001)


def test_a_folder_is_private_and_goes_with_the_program(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    script = f'touch {folder}/s; stat -c %a "$1"'
    with Child(["sh", "-c", script, "sh", str(folder)], limit_bytes=KIB, folder=folder) as child:
        assert child.finish(time.monotonic() + 30) == 0
        assert child.out == b"700\n"
    assert not folder.exists()


def test_a_folder_that_is_there_already_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with Child(["true"], limit_bytes=0, folder=folder) as child:
        assert child.finish(time.monotonic() + 30) != 0


def test_programs_of_the_current_folder_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "cat"
    script.write_text("#!/bin/sh\necho hostile\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f":.:{os.environ['PATH']}")
    assert run_bounded(["cat"], timeout_s=30, limit_bytes=KIB).text == ""
    inner = run_bounded(["sh", "-c", "cat </dev/null"], timeout_s=30, limit_bytes=KIB)
    assert inner.text == ""


def owner(folder: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), *command], stdout=subprocess.PIPE, text=True
    )


FLOOD = "trap '' TERM HUP INT PIPE; while :; do echo xxxxxxxxxxxxxxxx; done"


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("command", [SLEEPER, FLOOD])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_dies_with_its_owner(delay_s: float, command: str, number: int, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    mark = f"true {tmp_path.name}-{os.getpid()}; {command}"
    process = owner(folder, "sh", "-c", mark)
    assert process.stdout is not None
    process.stdout.readline()  # it has been started; how far it is, is a matter of the delay
    time.sleep(delay_s)
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    until(lambda: not running(mark) and not folder.exists(), 20)


@pytest.mark.parametrize("delay_s", [x / 100 for x in range(12)])
def test_it_dies_with_an_owner_that_has_just_started_it(delay_s: float, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    mark = f"true {tmp_path.name}-{os.getpid()}; {SLEEPER}"
    process = owner(folder, "sh", "-c", mark)
    time.sleep(0.1 + delay_s)  # the interpreter itself takes most of this
    process.kill()
    process.communicate()
    until(lambda: not running(mark) and not folder.exists(), 20)


def test_the_guard_itself_killed_leaves_nothing(tmp_path: Path) -> None:
    with Child(["sh", "-c", SLEEPER], limit_bytes=0, folder=tmp_path / "f") as child:
        until(lambda: running(SLEEPER))
        os.kill(child._process.pid, signal.SIGKILL)
        assert child.finish(time.monotonic() + 30) == -signal.SIGKILL
    assert running(SLEEPER) == []
    assert list(tmp_path.iterdir()) == []


def test_descriptors_of_ours_are_not_inherited() -> None:
    done = run_bounded(["ls", "/proc/self/fd"], timeout_s=30, limit_bytes=KIB)
    assert done.text.split() == ["0", "1", "2", "3"]  # the last one is ls's own


def test_nothing_is_left_open_here() -> None:
    def held() -> set[str]:
        return {entry.name for entry in Path("/proc/self/fd").iterdir()}

    before = held()
    for script in ("true", "yes"):
        try:
            sh(script, limit_bytes=KIB)
        except HostError:
            assert script == "yes"
    assert held() == before
