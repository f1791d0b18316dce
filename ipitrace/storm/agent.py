# SPDX-License-Identifier: Apache-2.0
"""QEMU's guest agent, on its socket or through libvirt: one question, one answer."""

import asyncio
import contextlib
import json
import logging
import random
import socket as sockets
from collections.abc import Iterator
from typing import Any, Final, Protocol

from ipitrace.errors import HostError, UsageError

_ANSWER_S: Final = 20.0  # a busy guest under emulation, too
_SYNC_ATTEMPTS: Final = 3
_NOT_THERE: Final = (
    "See that qemu-guest-agent runs in the guest and that nothing else (libvirt) holds its socket."
)
_ENDED: Final = "See whether the guest still runs."
_FORBIDDEN: Final = (
    "Allow it in the guest: see 'block-rpcs' and 'allow-rpcs' of qemu-ga, and docs/guests.md."
)


class Agent(Protocol):
    """The guest agent of one guest."""

    @property
    def via(self) -> str:
        """`qga` or `qga+libvirt`."""

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - by command
        """Have the agent do something; its answer as qga/qapi-schema.json describes it.

        Raises:
            HostError: it does not answer, or says no.
        """


class SocketAgent:
    """An agent behind a virtio-serial port that QEMU shows as a UNIX socket."""

    via = "qga"

    def __init__(self, path: str, connected: sockets.socket | None = None) -> None:
        """Connect, unless `connected` is a connection already.

        Raises:
            UsageError: the qemu.qmp package is missing.
            HostError: there is no agent that answers.
        """
        try:
            from qemu.qmp import ConnectError, QMPClient, QMPError  # noqa: PLC0415 - optional
        except ImportError as error:
            raise UsageError(
                "qga:// needs the Python package qemu.qmp, which is not installed.",
                "Install it: pip install 'ipitrace[qga]'.",
            ) from error
        logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())  # we say it ourselves
        # A connection that ends is an EOFError, which click takes for the user's interruption.
        self._errors = (QMPError, OSError, TimeoutError, EOFError)
        self._path = path
        self._loop = asyncio.Runner()
        try:
            # An agent greets nobody and negotiates nothing.
            self._client = QMPClient("ipitrace")
            self._client.await_greeting = self._client.negotiate = False
            self._loop.run(asyncio.wait_for(self._client.connect(connected or path), _ANSWER_S))
            self._synchronise()
        except ConnectError as error:
            self.close()
            raise HostError(f"{path} cannot be connected to: {error.exc}", _NOT_THERE) from error
        except BaseException:
            self.close()
            raise

    def _synchronise(self) -> None:
        """Pass over answers to somebody who asked before us."""
        for _ in range(_SYNC_ATTEMPTS):
            number = random.getrandbits(31)
            if self.ask("guest-sync", id=number) == number:
                return
        raise HostError(f"The agent behind {self._path} answers others' questions.", _NOT_THERE)

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - by command
        """As Agent.ask."""
        from qemu.qmp import ExecuteError  # noqa: PLC0415 - optional

        asked = self._client.execute(command, arguments)
        try:
            return self._loop.run(asyncio.wait_for(asked, _ANSWER_S))
        except ExecuteError as error:
            raise refused(command, str(error)) from error
        except TimeoutError as error:
            raise HostError(
                f"The guest agent behind {self._path} does not answer.", _NOT_THERE
            ) from error
        except self._errors as error:
            raise HostError(
                f"The connection to the guest agent behind {self._path} was lost: {error}",
                _ENDED,
            ) from error

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(*self._errors):
            self._loop.run(self._client.disconnect())
        self._loop.close()


class LibvirtAgent:
    """An agent whose socket libvirt holds, and through which it lets us ask."""

    via = "qga+libvirt"

    def __init__(self, domain: str) -> None:
        """Look the domain up.

        Raises:
            UsageError: the libvirt binding is missing.
            HostError: libvirt cannot be reached, or knows no such domain.
        """
        try:
            import libvirt  # noqa: PLC0415 - optional
            import libvirt_qemu  # noqa: PLC0415 - optional
        except ImportError as error:
            raise UsageError(
                "qga+libvirt:// needs libvirt's Python binding, which is not installed.",
                "Install python3-libvirt (Fedora: python3-libvirt, Arch: libvirt-python).",
            ) from error
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # we say it ourselves
        self._error = libvirt.libvirtError
        self._gone = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
        self._command = libvirt_qemu.qemuAgentCommand
        try:
            self._connection = libvirt.open(None)
            self._domain = self._connection.lookupByName(domain)
        except libvirt.libvirtError as error:
            raise HostError(
                f"libvirt shows no domain '{domain}': {error}",
                "See 'virsh list'; LIBVIRT_DEFAULT_URI names another libvirt.",
            ) from error

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - by command
        """As Agent.ask."""
        text = json.dumps({"execute": command, "arguments": arguments})
        try:
            return json.loads(self._command(self._domain, text, int(_ANSWER_S), 0))["return"]
        except self._error as error:
            if error.get_error_code() in self._gone:
                raise HostError(f"libvirt's domain has ended: {error}", _ENDED) from error
            raise refused(command, str(error)) from error

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(self._error):
            self._connection.close()


def refused(command: str, why: str) -> HostError:
    """The error for an agent that says no."""
    forbidden = "disabled" in why or "has not been found" in why or "not allowed" in why
    return HostError(
        f"The guest agent refused {command}: {why}",
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

    `connected` is as SocketAgent takes it.
    """
    agent = SocketAgent(socket, connected) if socket is not None else LibvirtAgent(domain or "")
    with contextlib.closing(agent):
        yield agent
