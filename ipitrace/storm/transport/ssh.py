# SPDX-License-Identifier: Apache-2.0
"""Transport through the system's ssh client, with its ~/.ssh/config, agents and host keys.

One connection without a session of its own is kept open. Every command is a session of this
connection (ControlMaster, with a socket in a private folder). The client of such a session reads
no configuration and uses only the socket.

The guest is not trusted: whatever the user's configuration contains, it gets no access to the
host's resources (agents, displays, ports, credentials, variables) and changes nothing on the host.
"""

import contextlib
import functools
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult

from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.search_path import others_may_write
from ipitrace.host.child import TICK_S, Child, run_bounded
from ipitrace.storm import limits
from ipitrace.storm.transport.shell import QUICK_S, Finished, Shell, nothing

_CONNECT_S: Final = 20
_LOGIN_S: Final = _CONNECT_S + QUICK_S
"""The limit for the complete login; ssh's own ConnectTimeout ends with the key exchange."""

_ENDING_S: Final = 5.0
# ssh_config(5): each option that gives the guest access to the host, or lets the login change
# something on the host.
_NOT_FOR_GUESTS: Final = {
    "AddKeysToAgent": "no",  # a login adds no key to the agent
    "UpdateHostKeys": "no",  # and a guest adds none to known_hosts
    "ClearAllForwardings": "yes",  # LocalForward, RemoteForward, DynamicForward
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ForwardX11Trusted": "no",
    "Tunnel": "no",
    "PermitLocalCommand": "no",
    "EscapeChar": "none",
    "Compression": "no",  # data from the guest is not decompressed
    "ControlPersist": "no",  # it would continue after this process
}
# Likewise, but not every ssh has these options, and ssh rejects an unknown option.
_WHERE_KNOWN: Final = {
    "EnableEscapeCommandline": "no",  # OpenSSH 9.2
    "ForkAfterAuthentication": "no",  # 8.7; it would continue after this process
    "GSSAPIDelegateCredentials": "no",  # depends on the build
}
_QUIET: Final = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", "LogLevel=ERROR"),  # no banners, which the guest controls
)
_OPTIONS: Final = (
    *_QUIET,
    *("-o", f"ConnectTimeout={_CONNECT_S}"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "RemoteCommand=none"),
)
# Without a configuration, SendEnv and SetEnv send nothing. If the socket is missing, ssh would
# connect by itself; ProxyCommand prevents this.
_SESSION: Final = (
    *("-F", "/dev/null"),
    *_QUIET,
    *("-o", "ControlMaster=no"),
    *("-o", "ProxyCommand=false"),
)
_SSH_FAILED: Final = 255
_LONGEST_FOLDER: Final = 60  # a socket's path has 108 bytes, and ssh temporarily appends 17
_AS_ROOT: Final = ("sudo", "-n")
_PATH: Final = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin"  # for accounts other than root
# Prints its process id first, so that it can be ended from another session.
_PRINTING_PID: Final = ("sh", "-c", f'{_PATH}; echo $$ >&2; exec "$@"', "sh")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")  # a process or user id
_HINTS: Final = (
    (
        "Host key verification failed",
        "Connect manually once and check the host's key: {ssh}. ipitrace never accepts a key.",
    ),
    ("Permission denied", "ipitrace asks for no password: set up a key, and try it with: {ssh}"),
    ("Could not resolve", "Check the host name."),
    ("Connection refused", "Check that sshd runs in the guest, and on this port."),
    ("", "Check that the guest runs and can be reached: {ssh}"),
)


@dataclass(frozen=True)
class Destination:
    """The address of the guest; None means the value in ~/.ssh/config."""

    host: str
    user: str | None
    port: int | None

    @classmethod
    def parse(cls, url: SplitResult) -> "Destination":
        """Parse ssh://[user@]host[:port].

        Raises:
            UsageError: the URL has another form.
        """
        try:
            host, port = url.hostname or "", url.port
        except ValueError as error:
            raise UsageError(f"{url.geturl()}: {error}", _FORM) from error
        if url.password is not None:
            raise UsageError(
                "A password on the command line is visible to every user of this machine.",
                "Set up a key or an agent for the guest, and omit the password.",
            )
        names = (host, url.username or "")
        invalid = any(name.startswith("-") or re.search(r"[^\w.:@+-]", name) for name in names)
        if not host or invalid or url.path not in {"", "/"} or url.query or url.fragment:
            raise UsageError(f"'{url.geturl()}' is not the address of a guest.", _FORM)
        return cls(host, url.username, port)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of ssh."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


_FORM: Final = "Write it as ssh://user@host:port; user and port are optional."


@dataclass(frozen=True)
class SshShell:
    """An open connection; created by open_ssh()."""

    to: Destination
    master: Child
    socket: Path
    root: bool
    via: str = "ssh"

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        limit_bytes: int = limits.TEXT_BYTES,
        tick: Callable[[], float | None] = nothing,
    ) -> Finished:
        """As Shell.run."""

        def end_there(stderr: str) -> None:
            number = stderr.partition("\n")[0]
            if _NUMBER.fullmatch(number):
                with contextlib.suppress(HostError):
                    self._session(["kill", number], timeout_s=_ENDING_S)

        def each_tick() -> float | None:
            self.master.exchange(0)  # its error messages
            return tick()

        done = self._session(
            [*_PRINTING_PID, *command],
            stdin=stdin,
            timeout_s=timeout_s,
            limit_bytes=limit_bytes,
            tick=each_tick,
            give_up=end_there,
        )
        number, _, errors = done.stderr.partition("\n")
        if not _NUMBER.fullmatch(number):  # the command was not started
            raise self._never_started(done)
        # ssh's own status: the helper, and programs that a shell runs here, never return it.
        if done.status == _SSH_FAILED and (not errors or "mux_client" in errors):
            raise _failure(self.to, errors or _LOST)
        return Finished(done.status, done.stdout, errors.strip())

    def _session(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        limit_bytes: int = limits.TEXT_BYTES,
        stdin: bytes = b"",
        tick: Callable[[], float | None] = nothing,
        give_up: Callable[[str], None] = lambda _stderr: None,
    ) -> Finished:
        words = command if self.root else (*_AS_ROOT, *command)
        host = ("--", self.to.host)
        return run_bounded(
            ["ssh", *_SESSION, "-S", str(self.socket), *host, shlex.join(words)],
            stdin=stdin,
            timeout_s=timeout_s,
            limit_bytes=limit_bytes,
            stderr_limit_bytes=limits.STDERR_BYTES,
            tick=tick,
            give_up=give_up,
            subject=f"The guest at {self.to.host}",
            called=shlex.join(command[len(_PRINTING_PID) :]),
        )

    def _never_started(self, done: Finished) -> HostError:
        if done.status == _SSH_FAILED:
            return _failure(self.to, done.stderr if self.socket.exists() else _LOST)
        output = done.stderr or done.text
        if not output:
            return _failure(self.to, f"its login ended with status {done.status}")
        return HostError(
            f"The login on {self.to.host} prints '{plain(output, 60)}' before a command's output.",
            "Change its shell's start-up files so that they print nothing if not interactive.",
        )


_LOST: Final = "the connection was lost"


@contextlib.contextmanager
def open_ssh(to: Destination) -> Iterator[Shell]:
    """Connect, and disconnect at the end.

    Raises:
        HostError: the connection fails, or root is not available there.
    """
    folder = Path(_place(), f"ipitrace-{secrets.token_hex(8)}")
    socket = folder / "s"
    command = ["ssh", "-N", "-M", "-S", str(socket), *_OPTIONS, *_protection(), *to.arguments]
    with Child(
        command, limit_bytes=limits.STDERR_BYTES, folder=folder, subject=f"The guest at {to.host}"
    ) as master:
        _wait_for(socket, master, to)
        shell = SshShell(to, master, socket, root=True)
        uid = _user(shell)
        if uid != 0:
            shell = SshShell(to, master, socket, root=False)
            if shell.run(["true"]).status != 0:
                raise HostError(
                    f"User {uid} of {to.host} is not root, and sudo there asks for a password.",
                    "Log in as root (ssh://root@...), or allow this user sudo without a password.",
                )
        yield shell


def _wait_for(socket: Path, master: Child, to: Destination) -> None:
    """Wait for the login; ssh then creates the socket.

    Raises:
        HostError: the login failed.
    """
    deadline_s = time.monotonic() + _LOGIN_S
    while not socket.exists():
        if master.ended():
            with contextlib.suppress(TimeoutError):
                master.finish(time.monotonic() + QUICK_S)
            raise _failure(to, master.err.decode(errors="replace"))
        if time.monotonic() > deadline_s:
            raise HostError(
                f"The login on {to.host} did not complete within {_LOGIN_S:.0f} s.",
                f"Check how long this takes: {_by_hand(to)}",
            )
        master.exchange(TICK_S)


def _user(shell: SshShell) -> int:
    """The user id in the guest."""
    done = shell.run(["id", "-u"])
    if not _NUMBER.fullmatch(done.text):
        raise HostError(
            f"The login on {shell.to.host} prints '{plain(done.text, 60)}' instead of its user's "
            "number.",
            "Change its shell's start-up files so that they print nothing if not interactive.",
        )
    return int(done.text)


@functools.cache
def _protection() -> tuple[str, ...]:
    """The options above that this machine's ssh supports.

    `ssh -G` shows an option only if it is built in.
    """
    done = run_bounded(
        ["ssh", "-G", "-F", "/dev/null", "localhost"],
        timeout_s=QUICK_S,
        limit_bytes=limits.TEXT_BYTES,
    )
    known = {line.partition(" ")[0] for line in done.text.splitlines()}
    supported = {name: value for name, value in _WHERE_KNOWN.items() if name.lower() in known}
    options = {**_NOT_FOR_GUESTS, **supported}
    return tuple(word for name, value in options.items() for word in ("-o", f"{name}={value}"))


def _failure(to: Destination, stderr: str) -> HostError:
    """The error with ssh's own message, and a hint."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    message = next(
        (line for line in lines for sign, _ in _HINTS if sign and sign in line),
        lines[-1] if lines else "ssh printed no message",
    )
    hint = next(text for sign, text in _HINTS if sign in message)
    return HostError(
        f"The guest at {to.host} cannot be reached: {plain(message)}", hint.format(ssh=_by_hand(to))
    )


def _by_hand(to: Destination) -> str:
    return shlex.join(["ssh", *to.arguments, "true"])


def _place() -> str:
    """A folder in which no other user can remove or rename our files."""
    place = tempfile.gettempdir()
    safe = len(place) < _LONGEST_FOLDER and not others_may_write(place)
    return place if safe else "/tmp"  # noqa: S108 - sticky
