# SPDX-License-Identifier: Apache-2.0
"""What a guest gets of the host by ssh: nothing, whatever the user's settings say.

And what is left of a connection when ipitrace is killed: nothing, either.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import HELPER_PATH, HERE, SIGNS, answers, run_ipitrace
from sshd import NAME, Server, end_guests, free_port, ssh_on_path, sshd
from test_ssh_guest import ASK, MODES, guest

from ipitrace.storm.transport.ssh import Destination, open_ssh

pytestmark = pytest.mark.live("root")

OURS = "of-the-host-only"


@pytest.fixture
def server() -> Iterator[Server]:
    """An honest guest behind an sshd that takes whatever it is given."""
    with tempfile.TemporaryDirectory(prefix="guest-", dir="/tmp") as name:
        folder = Path(name)
        for what, content in answers().items():
            (folder / what).write_bytes(content)
        (folder / "mode.json").write_text(
            json.dumps({"at": "", "actions": [], "mute": False, "signs": SIGNS})
        )
        words = ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(folder / "other_key")]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        settings = [
            f"ForceCommand {sys.executable} -I -S {HERE / 'ssh_guest.py'} {folder}",
            *("AcceptEnv *", "PermitUserEnvironment no", "PermitTTY yes", "PermitTunnel yes"),
            *("AllowAgentForwarding yes", "AllowTcpForwarding yes", "GatewayPorts no"),
            *("AllowStreamLocalForwarding yes", "X11Forwarding yes", "X11UseLocalhost yes"),
            f"HostKey {folder}/other_key",
        ]
        with sshd(folder, *settings) as made:
            yield made
        end_guests(folder)


@dataclass(frozen=True)
class Agent:
    """A real ssh-agent."""

    socket: Path

    def add(self, *words: str) -> str:
        """What `ssh-add` says."""
        done = subprocess.run(
            ["ssh-add", *words],
            env={**os.environ, "SSH_AUTH_SOCK": str(self.socket)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr


@pytest.fixture
def agent(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    place = server.folder / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as run:
        try:
            while not place.exists():
                assert run.poll() is None
                time.sleep(0.02)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
            yield Agent(place)
        finally:
            run.terminate()


def environments(server: Server) -> list[dict[str, str]]:
    """Variables of each command that the guest was asked for."""
    return [json.loads(line) for line in (server.folder / "environment").read_text().splitlines()]


def connectable(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass(frozen=True)
class Ports:
    """Where forwarding would be seen."""

    remote: int
    local: int
    dynamic: int


def generous(server: Server, ports: Ports) -> Sequence[str]:
    """Settings of a client that lends everything."""
    return (
        *("ForwardAgent yes", "ForwardX11 yes", "ForwardX11Trusted yes", "Compression yes"),
        f"RemoteForward 127.0.0.1:{ports.remote} 127.0.0.1:{server.port}",
        f"LocalForward 127.0.0.1:{ports.local} 127.0.0.1:{server.port}",
        f"DynamicForward 127.0.0.1:{ports.dynamic}",
        *("PermitLocalCommand yes", f"LocalCommand touch {server.folder}/local-command"),
        *("SendEnv *", "UpdateHostKeys yes", "AddKeysToAgent yes", "EscapeChar ~"),
        *("GSSAPIDelegateCredentials yes", "EnableEscapeCommandline yes"),
        *("ForkAfterAuthentication yes", "ControlMaster auto", "ControlPersist yes"),
        f"ControlPath {server.folder}/users-own-master",
        *("RequestTTY force", "RemoteCommand touch remote-command", "VisualHostKey yes"),
        *("ExitOnForwardFailure no", "PermitRemoteOpen any", "LogLevel DEBUG1"),
    )


def test_the_trap_works(server: Server, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same settings, a plain ssh lends what it is told to."""
    ports = Ports(free_port(), free_port(), free_port())
    settings = [s for s in generous(server, ports) if not s.startswith("RemoteCommand")]
    monkeypatch.setenv("IPITRACE_SECRET", OURS)
    path = ssh_on_path(server, server.port, settings)
    words = ["ssh", "-T", "-o", "ForkAfterAuthentication=no", "-o", "ControlMaster=no"]
    subprocess.run(
        [*words, NAME, "id -u"],
        env={**os.environ, "PATH": path, "DISPLAY": ":9"},
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    (seen,) = environments(server)
    assert seen["IPITRACE_SECRET"] == OURS
    assert "SSH_AUTH_SOCK" in seen
    assert (server.folder / "local-command").exists()
    assert "test" in agent.add("-l")


def test_nothing_gets_through(
    server: Server, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = Ports(free_port(), free_port(), free_port())
    monkeypatch.setenv("PATH", ssh_on_path(server, server.port, generous(server, ports)))
    monkeypatch.setenv("IPITRACE_SECRET", OURS)
    monkeypatch.setenv("DISPLAY", ":9")
    known = server.folder / "known_hosts"
    before = known.read_text()
    with open_ssh(Destination(NAME, None, None)) as shell:
        assert shell.run([HELPER_PATH, "status"]).stdout == answers()["status"]
        for port in (ports.remote, ports.local, ports.dynamic):
            assert not connectable(port)
    seen = environments(server)
    assert len(seen) == 2  # of `id -u`, and the helper's
    for variables in seen:
        assert not {"SSH_AUTH_SOCK", "DISPLAY", "XAUTHORITY", "SSH_TTY"} & variables.keys()
        assert OURS not in json.dumps(variables)
        assert "touch" not in variables["SSH_ORIGINAL_COMMAND"]
    assert not (server.folder / "local-command").exists()
    assert not (server.folder / "users-own-master").exists()
    assert "no identities" in agent.add("-l")
    assert known.read_text() == before


def test_a_key_that_only_the_agent_has_lets_us_in(
    server: Server, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.add(str(server.key))
    path = ssh_on_path(server, server.port)
    server.key.unlink()
    monkeypatch.setenv("PATH", path)
    with open_ssh(Destination(NAME, None, None)) as shell:
        assert shell.run(["id", "-u"]).text == "0"


def test_without_the_master_no_other_connection_is_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", ssh_on_path(server, server.port))
    with open_ssh(Destination(NAME, None, None)) as shell:
        shell.master.end()  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="connection was lost"):
            shell.run(["id", "-u"])


MOMENTS = (0.2, 0.6, 0.9, 1.2, 2.0)


@pytest.mark.parametrize(
    ("name", "number", "moments_s"),
    [
        ("status-drips", signal.SIGKILL, MOMENTS),
        ("status-ignores-signals", signal.SIGKILL, MOMENTS),
        ("user-without-end", signal.SIGKILL, MOMENTS),
        ("status-ignores-signals", signal.SIGTERM, MOMENTS[1::3]),
        ("status-ignores-signals", signal.SIGHUP, MOMENTS[1::3]),
    ],
)
def test_killed_at_any_moment_it_leaves_nothing(
    name: str, number: int, moments_s: Sequence[float]
) -> None:
    """Not ssh, not its master, and nothing in the folder for temporary files."""
    (mode,) = (mode for mode in MODES if mode.name == name)
    with guest(mode) as (server, port):
        path = ssh_on_path(server, port)
        for moment_s in moments_s:

            def end(pid: int, moment_s: float = moment_s) -> None:
                time.sleep(moment_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

            outcome = run_ipitrace(
                [*ASK, "--via", f"ssh://{NAME}"], environment={"PATH": path}, meanwhile=end
            )
            assert outcome.code is not None
            assert outcome.left_running == (), moment_s
            assert outcome.left_files == (), moment_s
