# SPDX-License-Identifier: Apache-2.0
"""A real sshd of the test's own, and an `ssh` on PATH that knows it under a name.

The system's sshd and its settings are not touched: own port on loopback, own keys, own
configuration.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

NAME: Final = "hostile-guest"
_SSHD_PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin"  # users' PATHs lack the first
_PRIVILEGES: Final = Path("/run/sshd")  # of Debian's build; the system's unit makes it, too
_START_S: Final = 30.0


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        port: on loopback.
        folder: its own.
        known_as: its line of known_hosts but for the address.
    """

    port: int
    folder: Path
    known_as: str

    @property
    def key(self) -> Path:
        """The private key that it lets in."""
        return self.folder / "key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_key(path: Path) -> str:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text().strip()


@contextlib.contextmanager
def sshd(folder: Path, *settings: str) -> Iterator[Server]:
    """Run sshd, with more lines of sshd_config(5); whatever it started ends with it."""
    program = shutil.which("sshd", path=_SSHD_PATH)
    if program is None:
        pytest.fail("sshd is not installed: script/setup test brings it", pytrace=False)
    _PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    known_as = _make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(_make_key(folder / "key") + "\n")
    port = free_port()
    locked = Path("/etc/shadow").read_text().partition("root:")[2].startswith("!")
    lines = [
        *settings,  # the first of a kind holds
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "PidFile none",
        "StrictModes no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        f"UsePAM {'yes' if locked else 'no'}",  # which alone lets a locked root in
        "PrintMotd no",
        "SetEnv SHLVL=9",  # bash reads root's start-up files below 2 (run_startup_files())
    ]
    config = folder / "sshd_config"
    config.write_text("\n".join(lines) + "\n")
    log = folder / "sshd.log"
    process = subprocess.Popen(
        [program, "-D", "-f", str(config), "-E", str(log)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(port, process, log)
        yield Server(port, folder, known_as)
    finally:
        for pid in [process.pid, *_descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        end_guests(folder)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def end_guests(folder: Path) -> None:
    """Kill what still plays a guest of this folder."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"{folder}".encode() in (place / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(place.name), signal.SIGKILL)


def ssh_on_path(server: Server, port: int, settings: Sequence[str] = ()) -> str:
    """A PATH with an `ssh` that knows the server as NAME, with more lines of ssh_config(5).

    ssh takes its settings from the user's home and from no variable, so it needs telling by
    an option.
    """
    known = server.folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {server.known_as}\n")
    config = server.folder / "ssh_config"
    lines = [
        f"Host {NAME}",
        "HostName 127.0.0.1",
        f"Port {port}",
        "User root",
        f"IdentityFile {server.key}",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {known}",
        *settings,
    ]
    config.write_text("\n".join(lines) + "\n")
    ssh = server.folder / "bin" / "ssh"
    ssh.parent.mkdir(exist_ok=True)
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    ssh.chmod(0o755)
    return f"{ssh.parent}:{os.environ['PATH']}"
