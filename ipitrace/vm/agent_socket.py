# SPDX-License-Identifier: Apache-2.0
"""A connection to the guest agent's socket of a VM's command line, and to no other socket.

The user who runs the VMM wrote the path. A short-lived child therefore opens it as that user,
without capabilities, relative to the VMM's own root and working directory. The connection is used
only if the VMM's process listens on it. Otherwise a command line with the path of a socket of a
root daemon would cause root to send to that daemon.
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

_LIMIT_S: Final = 5.0  # the listener may not answer
_REPLY_BYTES: Final = 512
_UCRED: Final = struct.Struct("3i")  # struct ucred, unix(7)
_PR_SET_DUMPABLE: Final = 4  # include/uapi/linux/prctl.h
_HINT: Final = "Name the guest's transport yourself: --via qga:///path, or --via ssh://..."


@dataclass(frozen=True)
class _Owner:
    """The user and groups with which a process opens files (proc_pid_status(5))."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def connect_agent(vm: VirtualMachine, path: str) -> socket.socket:
    """Connect to the UNIX socket that `vm`'s command line calls `path`.

    Raises:
        HostError: the owner may not open the socket, another process than the VMM listens on it,
            or the VM has ended.
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
    """Open the VMM's root and working directory."""
    opened: list[int] = []
    try:
        opened.append(os.open(f"/proc/{vm.pid}/root", os.O_PATH | os.O_CLOEXEC))
        opened.append(os.open(f"/proc/{vm.pid}/cwd", os.O_PATH | os.O_CLOEXEC))
        if read_started_at(vm.pid) != vm.started_at_ticks:
            raise HostError(f"The VM {vm.name} has ended.", "See 'ipitrace list'.")
        yield opened[0], opened[1]
    except OSError as error:
        raise HostError(
            f"The guest agent's socket of {vm.name} cannot be reached: the VMM's folders may not "
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
    """Check that we may become the VM's owner and enter its root (setresuid(2), chroot(2))."""
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
            f"The guest agent's socket of {vm.name} must be opened as user {owner.uid}, its owner; "
            f"missing: {' and '.join(missing)}.",
            f"Run it with sudo, or as the VM's owner. {_HINT}",
        )


def _is_elsewhere(root: int) -> bool:
    """Whether the root directory differs from ours."""
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
            reply, descriptors = b"it took too long", list[int]()
            if ready:
                reply, descriptors, _, _ = socket.recv_fds(ours, _REPLY_BYTES, 1)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if not descriptors:
        raise HostError(
            f"The guest agent's socket {path} of {vm.name} cannot be opened as user "
            f"{owner.uid}, who owns the VM: {reply.decode(errors='replace') or 'no answer'}.",
            f"Check that qemu-guest-agent's socket exists and is not in use. {_HINT}",
        )
    return socket.socket(fileno=descriptors[0])


def _child(answer: socket.socket, path: str, owner: _Owner, root: int, cwd: int) -> NoReturn:
    """Connect as the owner and pass the connection to the parent; the owner cannot trace us."""
    try:
        # For the time before the change of user; the change sets it again (prctl(2)).
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
    except BaseException as error:  # noqa: BLE001 - no exception may leave a forked child
        why = getattr(error, "strerror", None) or str(error)
        with contextlib.suppress(OSError):
            answer.sendall(why.encode(errors="replace")[:_REPLY_BYTES])
    finally:
        os._exit(0)


def _require_peer(vm: VirtualMachine, path: str, connection: socket.socket) -> None:
    """Check that the VMM listens: SO_PEERCRED is the process that called listen(2) (unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid = _UCRED.unpack(raw)[0]
    if pid != vm.pid or read_started_at(vm.pid) != vm.started_at_ticks:
        raise HostError(
            f"The socket {path}, which the command line of {vm.name} names for its guest agent, "
            f"belongs to another process: {pid} listens on it, and the VM is process {vm.pid}.",
            _HINT,
        )
    connection.settimeout(None)
