# SPDX-License-Identifier: Apache-2.0
"""Selection of the transport for a `--via` URL."""

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from ipitrace.base.errors import UsageError
from ipitrace.storm.transport.agent import open_agent
from ipitrace.storm.transport.local import open_local
from ipitrace.storm.transport.qga import open_qga
from ipitrace.storm.transport.shell import Shell
from ipitrace.storm.transport.ssh import (
    Destination,
    open_ssh,
)

LOCAL: Final = "local"
FORMS: Final = "ssh://user@host:port, qga:///path/to/socket, qga+libvirt://domain, or local"


def open_shell(via: str) -> AbstractContextManager[Shell]:
    """The transport to a guest: a context manager that opens and closes it.

    Raises:
        UsageError: `via` has none of the FORMS.
    """
    if via == LOCAL:
        return open_local()
    try:
        url = urlsplit(via)
    except ValueError as error:
        raise UsageError(f"--via {via}: {error}", f"Use one of {FORMS}.") from error
    if url.scheme == "ssh":
        return open_ssh(Destination.parse(url))
    if url.scheme == "qga" and not url.netloc and len(url.path) > 1:
        return _open_agent(path=unquote(url.path))
    if url.scheme == "qga+libvirt" and url.netloc and url.path in {"", "/"}:
        return _open_agent(domain=unquote(url.netloc))
    raise UsageError(f"--via {via} is not a transport to a guest.", f"Use one of {FORMS}.")


@contextmanager
def open_agent_shell(path: str, connected: socket.socket) -> Iterator[Shell]:
    """The agent at the other end of an existing connection; closed at the end."""
    with connected, open_agent(socket=path, connected=connected) as agent, open_qga(agent) as shell:
        yield shell


@contextmanager
def _open_agent(*, path: str | None = None, domain: str | None = None) -> Iterator[Shell]:
    with open_agent(socket=path, domain=domain) as agent, open_qga(agent) as shell:
        yield shell
