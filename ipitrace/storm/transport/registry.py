# SPDX-License-Identifier: Apache-2.0
"""The transports into a guest: what each form of `--via` opens."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from ipitrace.base.errors import UsageError
from ipitrace.storm.transport.agent import open_agent
from ipitrace.storm.transport.local import open_local
from ipitrace.storm.transport.qga import open_qga
from ipitrace.storm.transport.shell import Shell
from ipitrace.storm.transport.ssh import Destination, open_ssh

LOCAL: Final = "local"

Open = Callable[[SplitResult], AbstractContextManager[Shell] | None]
"""Opens a transport when it is entered and closes it when it is left; None: not of its form."""


@dataclass(frozen=True)
class Transport:
    """One form of `--via`.

    Attributes:
        scheme: the URL's scheme; empty for the one that is a bare word.
        form: an example, as help and errors show it.
        open: raises UsageError when the URL is wrong, HostError when the guest cannot be reached.
    """

    scheme: str
    form: str
    open: Open


def _ssh(url: SplitResult) -> AbstractContextManager[Shell]:
    return open_ssh(Destination.parse(url))


def _qga(url: SplitResult) -> AbstractContextManager[Shell] | None:
    path = unquote(url.path, errors="surrogateescape")  # the bytes of a path are any
    if url.netloc or len(path) <= 1 or "\0" in path:  # connect(2) reads a path up to a NUL
        return None
    return _open_agent(path=path)


def _qga_libvirt(url: SplitResult) -> AbstractContextManager[Shell] | None:
    if not url.netloc or url.path not in {"", "/"}:
        return None
    return _open_agent(domain=unquote(url.netloc))


def _local(url: SplitResult) -> AbstractContextManager[Shell] | None:
    return open_local() if url.geturl() == LOCAL else None


TRANSPORTS: Final = (
    Transport("ssh", "ssh://user@host:port", _ssh),
    Transport("qga", "qga:///path/to/socket", _qga),
    Transport("qga+libvirt", "qga+libvirt://domain", _qga_libvirt),
    Transport("", LOCAL, _local),
)

_FORMS: Final = [transport.form for transport in TRANSPORTS]
FORMS: Final = f"{', '.join(_FORMS[:-1])}, or {_FORMS[-1]}"


def open_shell(via: str) -> AbstractContextManager[Shell]:
    """The transport to a guest: a context manager that opens and closes it.

    Raises:
        UsageError: `via` has none of FORMS.
    """
    try:
        url = urlsplit(via)
    except ValueError as error:
        raise UsageError(f"--via {via}: {error}", f"Use one of {FORMS}.") from error
    # urlsplit() splits a name at ? and #, and drops tabs, line breaks and leading spaces: what is
    # left may be the name of another guest.
    altered = via.startswith(" ") or any(char in "?#" or char < " " for char in via)
    for transport in () if altered and url.scheme != "ssh" else TRANSPORTS:
        if transport.scheme == url.scheme and (shell := transport.open(url)) is not None:
            return shell
    escapes = " In a name, write ? as %3F and # as %23." if altered else ""
    raise UsageError(f"--via {via} is not a transport to a guest.", f"Use one of {FORMS}.{escapes}")


@contextmanager
def open_agent_shell(path: str, connected: socket.socket) -> Iterator[Shell]:
    """The agent at the other end of an existing connection; closed at the end."""
    with connected, open_agent(socket=path, connected=connected) as agent, open_qga(agent) as shell:
        yield shell


@contextmanager
def _open_agent(*, path: str | None = None, domain: str | None = None) -> Iterator[Shell]:
    with open_agent(socket=path, domain=domain) as agent, open_qga(agent) as shell:
        yield shell
