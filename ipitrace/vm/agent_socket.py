# SPDX-License-Identifier: Apache-2.0
"""A connection to the socket that a VMM's command line names, and to nothing else.

Whoever runs the VMM wrote that path. So it is opened as that user, without capabilities, from
where the VMM itself would begin (its root and working directory), by a short-lived child; and
it is used only if the VMM's process is who listens there. Else a command line that names the
socket of some daemon of root's would have root talk to it.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ipitrace.base.errors import HostError
from ipitrace.host.files import HOST
from ipitrace.host.privileges import Capability, become, held
from ipitrace.vm.model import VirtualMachine
from ipitrace.vm.threads import read_started_at

_LIMIT_S: Final = 5.0  # the listener may let us wait
_SAID_BYTES: Final = 512
_UCRED: Final = struct.Struct("3i")  # struct ucred, unix(7)
_PR_SET_DUMPABLE: Final = 4  # include/uapi/linux/prctl.h
_HINT: Final = "Name the way into the guest yourself: --via qga:///path, or --via ssh://..."


@dataclass(frozen=True)
class _Owner:
    """As whom a process opens files (proc_pid_status(5))."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def connect_agent(vm: VirtualMachine, path: str) -> socket.socket:
    """Connect to the UNIX socket that `vm`'s command line calls `path`.

    Raises:
        HostError: its owner may not open it, it is not the VMM that listens, or the VM is
            not there any more.
    """
    with _places(vm) as (root, cwd):
        owner = _owner(vm)
        _require_rights(vm, owner, root)
        connection = _connected_by_child(vm, path, owner, root, cwd)
    try:
        _require_peer(vm, path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _places(vm: VirtualMachine) -> Iterator[tuple[int, int]]:
    """The VMM's root and working directory, opened."""
    opened: list[int] = []
    try:
        opened.append(os.open(f"/proc/{vm.pid}/root", os.O_PATH | os.O_CLOEXEC))
        opened.append(os.open(f"/proc/{vm.pid}/cwd", os.O_PATH | os.O_CLOEXEC))
        if read_started_at(vm.pid) != vm.started_at_ticks:
            raise HostError(f"The VM {vm.name} has ended.", "See 'ipitrace list'.")
        yield opened[0], opened[1]
    except OSError as error:
        raise HostError(
            f"The guest agent's socket of {vm.name} cannot be reached: its VMM's folders may not "
            f"be opened ({error.strerror}).",
            f"Run it with sudo, or as the VM's owner. {_HINT}",
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _owner(vm: VirtualMachine) -> _Owner:
    status = HOST.text(f"/proc/{vm.pid}/status") or ""
    found = [
        re.search(rf"^{name}:\s+(?:[0-9]+\s+){{3}}([0-9]+)$", status, re.MULTILINE)
        for name in ("Uid", "Gid")
    ]
    groups = re.search(r"^Groups:([ \t0-9]*)$", status, re.MULTILINE)
    if found[0] is None or found[1] is None or groups is None:
        raise HostError(f"The VM {vm.name} has ended.", "See 'ipitrace list'.")
    return _Owner(int(found[0][1]), int(found[1][1]), tuple(map(int, groups[1].split())))


def _require_rights(vm: VirtualMachine, owner: _Owner, root: int) -> None:
    """See that we may become the VM's owner, and go where its VMM is (setresuid(2), chroot(2))."""
    needed: list[Capability] = []
    own = _Owner(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    if owner.uid != own.uid:
        needed.append(Capability.SETUID)
    if (owner.gid, set(owner.groups)) != (own.gid, set(own.groups)) or needed:
        needed.append(Capability.SETGID)
    if _is_elsewhere(root):
        needed.append(Capability.SYS_CHROOT)
    effective = held().effective
    missing = [f"CAP_{c.name}" for c in needed if not effective >> c & 1]
    if missing:
        raise HostError(
            f"The guest agent's socket of {vm.name} is opened as user {owner.uid}, whose VM it "
            f"is; missing: {' and '.join(missing)}.",
            f"Run it with sudo, or as the VM's owner. {_HINT}",
        )


def _is_elsewhere(root: int) -> bool:
    """Whether that root directory is another than ours."""
    return not os.path.samestat(os.fstat(root), Path("/").stat())


def _connected_by_child(
    vm: VirtualMachine, path: str, owner: _Owner, root: int, cwd: int
) -> socket.socket:
    ours, childs = socket.socketpair()
    with ours:
        with childs:
            pid = os.fork()
            if pid == 0:
                _child(childs, path, owner, root, cwd)
        try:
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            ready = poll.poll(_LIMIT_S * 1000)
            said, descriptors = b"it took too long", list[int]()
            if ready:
                said, descriptors, _, _ = socket.recv_fds(ours, _SAID_BYTES, 1)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ends itself
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if not descriptors:
        raise HostError(
            f"The guest agent's socket {path} of {vm.name} cannot be opened as user "
            f"{owner.uid}, whose VM it is: {said.decode(errors='replace') or 'no answer'}.",
            f"See that qemu-guest-agent's socket is there and free. {_HINT}",
        )
    return socket.socket(fileno=descriptors[0])


def _child(answer: socket.socket, path: str, owner: _Owner, root: int, cwd: int) -> NoReturn:
    """Connect as the owner and hand the connection over; the owner may not look into us."""
    try:
        # So long as we still are who we were; set again by the change of user (prctl(2)).
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        signal.alarm(int(_LIMIT_S) + 1)
        if _is_elsewhere(root):
            os.fchdir(root)
            os.chroot(".")
        os.fchdir(cwd)
        become(owner.uid, owner.gid, owner.groups)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_LIMIT_S)
        connection.connect(path)
        socket.send_fds(answer, [b"."], [connection.fileno()])
    except BaseException as error:  # noqa: BLE001 - nothing may come out of a forked child
        why = getattr(error, "strerror", None) or str(error)
        with contextlib.suppress(OSError):
            answer.sendall(why.encode(errors="replace")[:_SAID_BYTES])
    finally:
        os._exit(0)


def _require_peer(vm: VirtualMachine, path: str, connection: socket.socket) -> None:
    """See that the VMM is who listens: SO_PEERCRED is who called listen(2) (unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid = _UCRED.unpack(raw)[0]
    if pid != vm.pid or read_started_at(vm.pid) != vm.started_at_ticks:
        raise HostError(
            f"The socket {path}, which the command line of {vm.name} names for its guest agent, "
            f"is not that VM's: process {pid} listens there, and the VM is process {vm.pid}.",
            _HINT,
        )
    connection.settimeout(None)
