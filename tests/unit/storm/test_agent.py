# SPDX-License-Identifier: Apache-2.0
"""The agent's wire: in step again after what went wrong; and the real agent of QEMU.

What an agent may do to us is in tests/hostile.
"""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from ipitrace.base.errors import HostError
from ipitrace.storm import limits
from ipitrace.storm.transport.agent import SocketAgent, libvirt_answer
from ipitrace.storm.transport.registry import open_shell

if TYPE_CHECKING:
    from ipitrace.storm.transport.shell import Shell

Ends = tuple[SocketAgent, socket.socket]


class Far:
    """The agent's end, played by a thread: it answers questions as they come by `answer`."""

    def __init__(self, answer: Callable[[dict[str, Any]], bytes]) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.asked: list[str] = []
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.ours.close()
        self._theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._theirs.close()

    def _serve(self) -> None:
        with self._theirs.makefile("rb") as lines:
            for line in lines:
                question = json.loads(line.lstrip(b"\xff"))
                self.asked.append(question["execute"])
                self._theirs.sendall(self._answer(question))


def in_step(question: dict[str, Any]) -> bytes:
    """An honest answer to guest-sync-delimited; b"" to the rest."""
    if question["execute"] != "guest-sync-delimited":
        return b""
    return b'\xff{"return": %d}\n' % question["arguments"]["id"]


def test_a_socket_that_is_connected_already_is_taken() -> None:
    with Far(lambda question: in_step(question) or b'{"return": {"pid": 7}}\n') as far:
        agent = SocketAgent("/nowhere", far.ours)
        assert agent.ask("guest-exec", path="true") == {"pid": 7}
        agent.close()
    assert far.asked == ["guest-sync-delimited", "guest-exec"]


def test_answers_to_others_are_passed_over() -> None:
    before = b'{"return": 5}\n{"error": {"desc": "stray"}}\n\xff{"return": 1}\n'
    with Far(
        lambda question: before + in_step(question) if in_step(question) else b'{"return": 9}\n'
    ) as far:
        assert SocketAgent("/nowhere", far.ours).ask("guest-ping") == 9


def test_an_answer_that_comes_late_is_not_taken_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ANSWER_S", 0.3)
    late = [True]

    def answer(question: dict[str, Any]) -> bytes:
        if question["execute"] == "guest-ping" and late.pop() if late else False:
            time.sleep(0.6)
            return b'{"return": "late"}\n'
        return in_step(question) or b'{"return": "in time"}\n'

    with Far(answer) as far:
        agent = SocketAgent("/nowhere", far.ours)
        with pytest.raises(HostError, match="does not answer"):
            agent.ask("guest-ping")
        time.sleep(0.5)
        assert agent.ask("guest-info") == "in time"
    assert far.asked[-2:] == ["guest-sync-delimited", "guest-info"]


def test_who_answers_nonsense_is_asked_no_more() -> None:
    with Far(lambda question: in_step(question) or b"nonsense\n") as far:
        agent = SocketAgent("/nowhere", far.ours)
        with pytest.raises(HostError, match="is not valid"):
            agent.ask("guest-ping")
        with pytest.raises(HostError, match="closed after an error"):
            agent.ask("guest-ping")
    assert far.asked == ["guest-sync-delimited", "guest-ping"]


@pytest.mark.parametrize("path", ["/no/such/socket", "/tmp/\0", "/" + 200 * "x"])
def test_a_path_that_is_no_socket(path: str) -> None:
    with pytest.raises(HostError, match=r"Connecting to .* failed"):
        SocketAgent(path)


@pytest.mark.parametrize(
    "answer",
    [None, "", "[]", "{}", '{"error": {}}', "{" * 100_000, '{"return": NaN}', "9" * 5000],
)
def test_what_libvirt_hands_on_may_be_anything(answer: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        libvirt_answer(answer)


def test_libvirts_answer_is_bounded() -> None:
    assert libvirt_answer('{"return": {"pid": 7}}') == {"pid": 7}
    with pytest.raises(ValueError, match="more than 2097152 bytes"):
        libvirt_answer(json.dumps({"return": "A" * limits.ANSWER_BYTES}))


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Path]:
    """The socket of QEMU's own agent, run on this machine as in a guest."""
    program = shutil.which("qemu-ga", path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("qemu-ga is not installed")
    path = tmp_path / "agent"
    words = ["-m", "unix-listen", "-p", str(path), "-t", str(tmp_path), "-f", f"{tmp_path}/pid"]
    with subprocess.Popen([program, *words], stderr=subprocess.DEVNULL) as agent:
        until_s = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < until_s
            time.sleep(0.02)
        yield path
        agent.terminate()


def open_real(path: Path) -> Any:
    return open_shell(f"qga://{path}")


def test_the_real_agent(real: Path) -> None:
    with socket.socket(socket.AF_UNIX) as before:
        before.connect(str(real))
        before.sendall(b'{"execute": "guest-')  # half a question of somebody before us
    shell: Shell
    with open_real(real) as shell:
        done = shell.run(["sh", "-c", "cat; echo why >&2; exit 3"], stdin=b"\0\xff" * 60_000)
        assert (done.status, done.stdout, done.stderr) == (3, b"\0\xff" * 60_000, "why")
        whole = shell.run(["head", "-c", "3000000", "/dev/zero"])
        assert whole.stdout == bytes(3_000_000)
        folder = Path(shell.folder)  # type: ignore[attr-defined]
        assert folder.is_dir()
    assert not folder.exists()


def test_the_real_agent_prints_too_much_or_never_ends(real: Path) -> None:
    with open_real(real) as shell:
        with pytest.raises(HostError, match="printed more than 1000 bytes"):
            shell.run(["head", "-c", "1001", "/dev/zero"], limit_bytes=1000)
        assert len(shell.run(["head", "-c", "1000", "/dev/zero"], limit_bytes=1000).stdout) == 1000
        unlike_others = f"{10_000 + os.getpid()}"
        with pytest.raises(HostError, match="did not end"):
            shell.run(["sleep", unlike_others], timeout_s=1.0)
        assert shell.run(["true"]).status == 0
        with pytest.raises(HostError, match="killed by signal 9"):
            shell.run(["sh", "-c", "kill -9 $$"])
