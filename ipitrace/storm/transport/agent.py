# SPDX-License-Identifier: Apache-2.0
"""QEMU's guest agent, through its socket or through libvirt: one command, one answer."""

import contextlib
import json
import socket as sockets
from collections.abc import Iterator
from typing import Final, Protocol

from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.untrusted import parse_json
from ipitrace.storm import limits
from ipitrace.storm.guest_json import member
from ipitrace.storm.transport.agent_socket import AgentSocket, RefusedError

_NOT_THERE: Final = (
    "Check that qemu-guest-agent runs in the guest and that nothing else (libvirt) uses its socket."
)
_ENDED: Final = "Check whether the guest still runs."
_ODD: Final = "Check that it is QEMU's guest agent; a guest may run any program in its place."
_FORBIDDEN: Final = (
    "Allow it in the guest: see 'block-rpcs' and 'allow-rpcs' of qemu-ga, and docs/guests.md."
)


class Agent(Protocol):
    """The guest agent of one guest."""

    @property
    def via(self) -> str:
        """`qga` or `qga+libvirt`."""

    def ask(self, command: str, **arguments: object) -> object:
        """Execute an agent command and return its answer, which may have any type.

        The expected answer is defined in QEMU's qga/qapi-schema.json; the guest may not follow it.

        Raises:
            HostError: it does not answer, refuses, or answers too much.
        """


class SocketAgent:
    """An agent behind a virtio-serial port that QEMU exposes as a UNIX socket."""

    via = "qga"

    def __init__(self, path: str, connected: sockets.socket | None = None) -> None:
        """Connect, and check that an agent answers.

        Args:
            path: the path of the socket.
            connected: an existing connection to it, whose listener was checked; close() closes
                it.

        Raises:
            HostError: no agent answers.
        """
        self._path = path
        self._socket = AgentSocket(connected or _connect(path))
        try:
            with self._as_host_errors("guest-sync-delimited"):
                self._socket.synchronise()
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, **arguments: object) -> object:
        """As Agent.ask."""
        with self._as_host_errors(command):
            return self._socket.ask(command, arguments)

    @contextlib.contextmanager
    def _as_host_errors(self, command: str) -> Iterator[None]:
        """Convert errors to HostError."""
        try:
            yield
        except RefusedError as error:
            raise refused(command, str(error)) from error
        except TimeoutError as error:
            raise HostError(
                f"The guest agent behind {self._path} does not answer.", _NOT_THERE
            ) from error
        except OSError as error:
            raise HostError(
                f"The connection to the guest agent behind {self._path} was lost: {error}",
                _ENDED,
            ) from error
        except ValueError as error:
            raise unknown_answer(command, error) from error

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


def _connect(path: str) -> sockets.socket:
    connection = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    connection.settimeout(limits.ANSWER_S)
    try:
        connection.connect(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        connection.close()
        why = getattr(error, "strerror", None) or error
        raise HostError(f"Connecting to {path} failed: {why}", _NOT_THERE) from error
    return connection


class LibvirtAgent:
    """An agent whose socket is held by libvirt, and that is reached through libvirt."""

    via = "qga+libvirt"

    def __init__(self, domain: str) -> None:
        """Look up the domain.

        Raises:
            UsageError: the libvirt binding is missing.
            HostError: libvirt cannot be reached, or has no such domain.
        """
        try:
            import libvirt  # noqa: PLC0415 - optional
            import libvirt_qemu  # noqa: PLC0415 - optional
        except ImportError as error:
            raise UsageError(
                "qga+libvirt:// needs libvirt's Python binding, which is not installed.",
                "Install python3-libvirt (Fedora: python3-libvirt, Arch: libvirt-python).",
            ) from error
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # do not print errors
        self._error = libvirt.libvirtError
        self._gone = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
        self._command = libvirt_qemu.qemuAgentCommand
        try:
            self._connection = libvirt.open(None)
            self._domain = self._connection.lookupByName(domain)
        except libvirt.libvirtError as error:
            raise HostError(
                f"libvirt has no domain '{domain}': {error}",
                "See 'virsh list'; LIBVIRT_DEFAULT_URI selects another libvirt.",
            ) from error

    def ask(self, command: str, **arguments: object) -> object:
        """As Agent.ask."""
        text = json.dumps({"execute": command, "arguments": arguments})
        try:
            answer = self._command(self._domain, text, int(limits.ANSWER_S), 0)
        except self._error as error:
            if error.get_error_code() in self._gone:
                raise HostError(
                    f"libvirt's domain has ended: {plain(str(error))}", _ENDED
                ) from error
            raise refused(command, str(error)) from error
        try:
            return libvirt_answer(answer)
        except ValueError as error:
            raise unknown_answer(command, error) from error

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(self._error):
            self._connection.close()


def libvirt_answer(answer: object) -> object:
    """The answer of an agent through libvirt, which does not change it.

    Raises:
        ValueError: it is not an answer, or too long.
    """
    if not isinstance(answer, str):
        raise ValueError("it is empty")  # noqa: TRY004 - one error for all invalid answers
    if len(answer) > limits.ANSWER_BYTES:
        raise ValueError(f"it has more than {limits.ANSWER_BYTES} bytes")
    parsed = parse_json(answer.encode(errors="replace"), limits.ANSWER_BYTES)
    return member(parsed, "return", object)


def unknown_answer(command: str, why: ValueError) -> HostError:
    """The error for an answer that is not valid."""
    return HostError(
        f"The guest agent's answer to {command} is not valid: {plain(str(why))}.",
        _ODD,
    )


def refused(command: str, why: str) -> HostError:
    """The error for an agent that refuses a command."""
    forbidden = "disabled" in why or "has not been found" in why or "not allowed" in why
    return HostError(
        f"The guest agent refused {command}: {plain(why)}",
        _FORBIDDEN if forbidden else "See the guest's journal: journalctl -u qemu-guest-agent.",
    )


@contextlib.contextmanager
def open_agent(
    *,
    socket: str | None = None,
    domain: str | None = None,
    connected: sockets.socket | None = None,
) -> Iterator[Agent]:
    """The agent of a socket or of a libvirt domain; disconnected at the end.

    `connected` is as in SocketAgent.
    """
    agent = SocketAgent(socket, connected) if socket is not None else LibvirtAgent(domain or "")
    with contextlib.closing(agent):
        yield agent
