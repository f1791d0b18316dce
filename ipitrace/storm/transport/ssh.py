# SPDX-License-Identifier: Apache-2.0
"""Into a guest by the system's ssh client, which knows ~/.ssh/config, agents and host keys.

One connection is kept, without a session of its own; every command is a session of it
(ControlMaster, with a socket in a private folder). What runs such a session reads no
configuration and knows nothing but the socket.

The guest may be anybody's: whatever the user's configuration says, it is lent nothing of the
host's (agents, displays, ports, credentials, variables) and changes nothing here.
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

from ipitrace.base.errors import (
    HostError,
    UsageError,
)
from ipitrace.base.foreign import plain
from ipitrace.base.search_path import others_may_write
from ipitrace.host.child import (
    TICK_S,
    Child,
    run_bounded,
)
from ipitrace.storm import limits
from ipitrace.storm.transport.shell import (
    QUICK_S,
    Finished,
    Shell,
    nothing,
)

_CONNECT_S: Final = 20
_LOGIN_S: Final = _CONNECT_S + QUICK_S
"""For the whole of it; ssh's own ConnectTimeout ends with the key exchange."""

_ENDING_S: Final = 5.0
# ssh_config(5), each option that lends the guest something of the host's or lets the login
# change something here.
_NOT_FOR_GUESTS: Final = {
    "AddKeysToAgent": "no",  # a login puts no key into the agent,
    "UpdateHostKeys": "no",  # and what a guest says none into known_hosts
    "ClearAllForwardings": "yes",  # LocalForward, RemoteForward, DynamicForward
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ForwardX11Trusted": "no",
    "Tunnel": "no",
    "PermitLocalCommand": "no",
    "EscapeChar": "none",
    "Compression": "no",  # nothing of the guest's is unpacked
    "ControlPersist": "no",  # it would outlive us
}
# Likewise, but not every ssh has them, and an unknown one ends it.
_WHERE_KNOWN: Final = {
    "EnableEscapeCommandline": "no",  # OpenSSH 9.2
    "ForkAfterAuthentication": "no",  # 8.7; it would outlive us
    "GSSAPIDelegateCredentials": "no",  # a matter of its build
}
_QUIET: Final = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", "LogLevel=ERROR"),  # no banners: they are the guest's words
)
_OPTIONS: Final = (
    *_QUIET,
    *("-o", f"ConnectTimeout={_CONNECT_S}"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "RemoteCommand=none"),
)
# Without configuration there is nothing that SendEnv or SetEnv would send. Without the socket
# ssh would connect by itself; it must not.
_SESSION: Final = (
    *("-F", "/dev/null"),
    *_QUIET,
    *("-o", "ControlMaster=no"),
    *("-o", "ProxyCommand=false"),
)
_SSH_FAILED: Final = 255
_LONGEST_FOLDER: Final = 60  # a socket's path has 108 bytes, and ssh appends 17 for a while
_AS_ROOT: Final = ("sudo", "-n")
_PATH: Final = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin"  # of an account that is not root's
# Tells its process id first, so that it can be ended from another session.
_TELLING: Final = ("sh", "-c", f'{_PATH}; echo $$ >&2; exec "$@"', "sh")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")  # of a process, or of a user
_HINTS: Final = (
    (
        "Host key verification failed",
        "Connect by hand once and check the host's key: {ssh}. ipitrace never accepts one itself.",
    ),
    ("Permission denied", "ipitrace asks for no password: set up a key, and try it with: {ssh}"),
    ("Could not resolve", "See that the name is right."),
    ("Connection refused", "See that sshd runs in the guest, and on this port."),
    ("", "See that the guest runs and can be reached: {ssh}"),
)


@dataclass(frozen=True)
class Destination:
    """Where to connect to; None lets ~/.ssh/config say."""

    host: str
    user: str | None
    port: int | None

    @classmethod
    def parse(cls, url: SplitResult) -> "Destination":
        """From ssh://[user@]host[:port].

        Raises:
            UsageError: it is no such URL.
        """
        try:
            host, port = url.hostname or "", url.port
        except ValueError as error:
            raise UsageError(f"{url.geturl()}: {error}", _FORM) from error
        if url.password is not None:
            raise UsageError(
                "A password on the command line is seen by everybody on this machine.",
                "Set up a key for the guest, or an agent, and leave the password out.",
            )
        names = (host, url.username or "")
        odd = any(name.startswith("-") or re.search(r"[^\w.:@+-]", name) for name in names)
        if not host or odd or url.path not in {"", "/"} or url.query or url.fragment:
            raise UsageError(f"'{url.geturl()}' names no guest.", _FORM)
        return cls(host, url.username, port)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What ssh is given."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


_FORM: Final = "Write it as ssh://user@host:port; user and port may be left out."


@dataclass(frozen=True)
class SshShell:
    """A connection that is there; made by open_ssh()."""

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
        tick: Callable[[], None] = nothing,
    ) -> Finished:
        """As Shell.run."""

        def end_there(stderr: str) -> None:
            number = stderr.partition("\n")[0]
            if _NUMBER.fullmatch(number):
                with contextlib.suppress(HostError):
                    self._session(["kill", number], timeout_s=_ENDING_S)

        def each_tick() -> None:
            self.master.exchange(0)  # what it complains of
            tick()

        done = self._session(
            [*_TELLING, *command],
            stdin=stdin,
            timeout_s=timeout_s,
            limit_bytes=limit_bytes,
            tick=each_tick,
            give_up=end_there,
        )
        number, _, rest = done.stderr.partition("\n")
        if not _NUMBER.fullmatch(number):  # so it never started
            raise self._never_started(done)
        # ssh's own: the helper and what a shell runs here never end so.
        if done.status == _SSH_FAILED and (not rest or "mux_client" in rest):
            raise _failure(self.to, rest or _LOST)
        return Finished(done.status, done.stdout, rest.strip())

    def _session(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        limit_bytes: int = limits.TEXT_BYTES,
        stdin: bytes = b"",
        tick: Callable[[], None] = nothing,
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
            who=f"The guest at {self.to.host}",
            called=shlex.join(command[len(_TELLING) :]),
        )

    def _never_started(self, done: Finished) -> HostError:
        if done.status == _SSH_FAILED:
            return _failure(self.to, done.stderr if self.socket.exists() else _LOST)
        said = done.stderr or done.text
        if not said:
            return _failure(self.to, f"its login ended with status {done.status}")
        return HostError(
            f"The login on {self.to.host} prints '{plain(said, 60)}' before any command's output.",
            "Let its shell's start-up files print nothing when they are not interactive.",
        )


_LOST: Final = "the connection was lost"


@contextlib.contextmanager
def open_ssh(to: Destination) -> Iterator[Shell]:
    """Connect, and disconnect at the end.

    Raises:
        HostError: that does not work, or we may not be root there.
    """
    folder = Path(_place(), f"ipitrace-{secrets.token_hex(8)}")
    socket = folder / "s"
    command = ["ssh", "-N", "-M", "-S", str(socket), *_OPTIONS, *_protection(), *to.arguments]
    with Child(
        command, limit_bytes=limits.STDERR_BYTES, folder=folder, who=f"The guest at {to.host}"
    ) as master:
        _wait_for(socket, master, to)
        shell = SshShell(to, master, socket, root=True)
        uid = _user(shell)
        if uid != 0:
            shell = SshShell(to, master, socket, root=False)
            if shell.run(["true"]).status != 0:
                raise HostError(
                    f"User {uid} of {to.host} is not root, and sudo there asks for a password.",
                    "Log in as root (ssh://root@...), or allow that user sudo without a password.",
                )
        yield shell


def _wait_for(socket: Path, master: Child, to: Destination) -> None:
    """Wait for the login: then ssh makes the socket.

    Raises:
        HostError: there is none.
    """
    deadline_s = time.monotonic() + _LOGIN_S
    while not socket.exists():
        if master.ended():
            with contextlib.suppress(TimeoutError):
                master.finish(time.monotonic() + QUICK_S)
            raise _failure(to, master.err.decode(errors="replace"))
        if time.monotonic() > deadline_s:
            raise HostError(
                f"The guest at {to.host} did not let us in within {_LOGIN_S:.0f} s.",
                f"See how long this takes: {_by_hand(to)}",
            )
        master.exchange(TICK_S)


def _user(shell: SshShell) -> int:
    """Who we are over there."""
    said = shell.run(["id", "-u"])
    if not _NUMBER.fullmatch(said.text):
        raise HostError(
            f"The login on {shell.to.host} prints '{plain(said.text, 60)}' where its user's "
            "number should be.",
            "Let its shell's start-up files print nothing when they are not interactive.",
        )
    return int(said.text)


@functools.cache
def _protection() -> tuple[str, ...]:
    """Options for what this machine's ssh has of the above.

    `ssh -G` shows an option only where it is built in.
    """
    done = run_bounded(
        ["ssh", "-G", "-F", "/dev/null", "localhost"],
        timeout_s=QUICK_S,
        limit_bytes=limits.TEXT_BYTES,
    )
    known = {line.partition(" ")[0] for line in done.text.splitlines()}
    there = {name: value for name, value in _WHERE_KNOWN.items() if name.lower() in known}
    options = {**_NOT_FOR_GUESTS, **there}
    return tuple(word for name, value in options.items() for word in ("-o", f"{name}={value}"))


def _failure(to: Destination, stderr: str) -> HostError:
    """ssh's own words, and what to do."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next(
        (line for line in lines for sign, _ in _HINTS if sign and sign in line),
        lines[-1] if lines else "ssh said nothing",
    )
    hint = next(text for sign, text in _HINTS if sign in said)
    return HostError(
        f"The guest at {to.host} cannot be reached: {plain(said)}", hint.format(ssh=_by_hand(to))
    )


def _by_hand(to: Destination) -> str:
    return shlex.join(["ssh", *to.arguments, "true"])


def _place() -> str:
    """A folder in which nobody can take what is ours away."""
    place = tempfile.gettempdir()
    safe = len(place) < _LONGEST_FOLDER and not others_may_write(place)
    return place if safe else "/tmp"  # noqa: S108 - sticky
