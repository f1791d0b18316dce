# SPDX-License-Identifier: Apache-2.0
"""Into a guest by the system's ssh client, which knows ~/.ssh/config, agents and host keys.

One connection is kept; every command is a session of it (ControlMaster, with a socket in
a private folder). The kept session runs `cat`, which ends when this process does,
however it ends, and so does the connection.
"""

import contextlib
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import SplitResult

from ipitrace.errors import HostError, UsageError
from ipitrace.storm.limits import TEXT_BYTES
from ipitrace.storm.shell import QUICK_S, Finished, Shell, run_here

_CONNECT_S: Final = 20
_OPTIONS: Final = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={_CONNECT_S}"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
    *("-o", "ControlPersist=no"),
)
_SSH_FAILED: Final = 255
_LONGEST_FOLDER: Final = 60  # a socket's path has 108 bytes, and ssh appends 17 for a while
_AS_ROOT: Final = ("sudo", "-n")
_PATH: Final = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin"  # of an account that is not root's
# Tells its process id first, so that it can be ended from another session.
_TELLING: Final = ("sh", "-c", f'{_PATH}; echo $$ >&2; exec "$@"', "sh")
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
        odd = any(name.startswith("-") or re.search(r"[\s'\"%$`\\]", name) for name in names)
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
    socket: Path
    root: bool
    via: str = "ssh"

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        tick: Callable[[], None] = lambda: None,
        limit_bytes: int = TEXT_BYTES,  # noqa: ARG002 - run_here() bounds nothing yet
    ) -> Finished:
        """As Shell.run."""

        def end_there(stderr: str) -> None:
            number = stderr.partition("\n")[0]
            if number.isdecimal():
                with contextlib.suppress(HostError, subprocess.TimeoutExpired):
                    subprocess.run(
                        self._ssh(["kill", number]),
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        check=False,
                        timeout=QUICK_S,
                    )

        done = run_here(
            self._ssh([*_TELLING, *command]),
            stdin=stdin,
            timeout_s=timeout_s,
            tick=tick,
            give_up=end_there,
        )
        number, _, rest = done.stderr.partition("\n")
        if not number.isdecimal():  # so it never started
            raise _failure(self.to, done.stderr)
        # ssh's own: the helper and what a shell runs here never end so.
        if done.status == _SSH_FAILED and (not rest or "mux_client" in rest):
            raise _failure(self.to, rest or "the connection was lost")
        return Finished(done.status, done.stdout, rest.strip())

    def _ssh(self, command: Sequence[str]) -> list[str]:
        words = command if self.root else (*_AS_ROOT, *command)
        options = ("-o", "ControlMaster=no", "-S", str(self.socket))
        return ["ssh", *_OPTIONS, *options, *self.to.arguments, shlex.join(words)]


@contextlib.contextmanager
def open_ssh(to: Destination) -> Iterator[Shell]:
    """Connect, and disconnect at the end.

    Raises:
        HostError: that does not work, or we may not be root there.
    """
    with tempfile.TemporaryDirectory(prefix="ipitrace-", dir=_short_folder()) as folder:
        socket = Path(folder, "s")
        with _connection(to, socket) as uid:
            shell = SshShell(to, socket, root=uid == 0)
            if uid != 0 and shell.run(["true"]).status != 0:
                raise HostError(
                    f"User {uid} of {to.host} is not root, and sudo there asks for a password.",
                    "Log in as root (ssh://root@...), or allow that user sudo without a password.",
                )
            yield shell


@contextlib.contextmanager
def _connection(to: Destination, socket: Path) -> Iterator[int]:
    """Keep a connection; the user id over there."""
    command = ["ssh", *_OPTIONS, "-M", "-S", str(socket), *to.arguments, "id -u; exec cat"]
    with tempfile.TemporaryFile() as err:
        try:
            master = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(
                f"The program ssh cannot be started: {error.strerror}.",
                "Install the OpenSSH client.",
            ) from error
        try:
            uid = _first_line(master)
            if uid and not uid.isdecimal():
                raise HostError(
                    f"The login on {to.host} prints '{uid[:60]}' before any command's output.",
                    "Let its shell's start-up files print nothing when they are not interactive.",
                )
            if not uid:
                master.wait(QUICK_S)
                err.seek(0)
                raise _failure(to, err.read().decode(errors="replace"))
            yield int(uid)
        finally:
            _close(master)


def _first_line(master: "subprocess.Popen[bytes]") -> str:
    """What the guest says first; "" when ssh gave up, or took too long."""
    out = _pipe(master.stdout)
    late = threading.Timer(_CONNECT_S + QUICK_S, master.kill)
    late.start()
    try:
        return out.readline().decode(errors="replace").strip()
    finally:
        late.cancel()
        late.join()


def _close(master: "subprocess.Popen[bytes]") -> None:
    """End the connection: its input ends, so `cat` does, so ssh does."""
    with contextlib.suppress(OSError):
        _pipe(master.stdin).close()
    try:
        master.wait(3)
    except subprocess.TimeoutExpired:
        master.kill()
        master.wait()
    finally:
        _pipe(master.stdout).close()


def _pipe(file: IO[bytes] | None) -> IO[bytes]:
    if file is None:
        raise AssertionError
    return file


def _failure(to: Destination, stderr: str) -> HostError:
    """ssh's own words, and what to do."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next(
        (line for line in lines for sign, _ in _HINTS if sign and sign in line),
        lines[-1] if lines else "ssh said nothing",
    )
    hint = next(text for sign, text in _HINTS if sign in said)
    by_hand = shlex.join(["ssh", *to.arguments, "true"])
    return HostError(f"The guest at {to.host} cannot be reached: {said}", hint.format(ssh=by_hand))


def _short_folder() -> str | None:
    return None if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"  # noqa: S108
