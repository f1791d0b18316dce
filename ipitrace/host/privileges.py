# SPDX-License-Identifier: Apache-2.0
"""Permanently drop the capabilities that a command no longer needs (capabilities(7)).

Capabilities belong to a thread, and running threads keep theirs: drop them before important
threads are started. Child processes get at most what is kept.
"""

import ctypes
import os
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ipitrace.base.errors import HostError

_CAPABILITY_VERSION_3: Final = 0x20080522  # include/uapi/linux/capability.h
_PR_CAPBSET_DROP: Final = 24  # include/uapi/linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_MOST_CAPABILITIES: Final = 64
_WORD_BITS: Final = 32


class Capability(IntEnum):
    """The capabilities that a command needs; include/uapi/linux/capability.h."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_ADMIN = 12
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_NICE = 23
    SYS_RESOURCE = 24
    PERFMON = 38
    BPF = 39


LOOK_INTO_PROCESSES: Final = frozenset({Capability.DAC_READ_SEARCH, Capability.SYS_PTRACE})
"""Needed for /proc/PID/fd of other users' processes, and for debugfs."""


TRACE: Final = frozenset({Capability.BPF, Capability.PERFMON})
"""Needed to load and attach BPF programs; BPF is enough for maps."""

WRITE_FOR_OTHERS: Final = frozenset({Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER})
"""Needed, under sudo, to write into folders of other users and to give files to them."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Held:
    """This thread's capabilities, as bits."""

    effective: int
    permitted: int
    inheritable: int


def held() -> Held:
    """This thread's capabilities."""
    words = (_Data * 2)()
    _call("capget", ctypes.byref(_header()), words)
    return Held(
        words[0].effective | words[1].effective << _WORD_BITS,
        words[0].permitted | words[1].permitted << _WORD_BITS,
        words[0].inheritable | words[1].inheritable << _WORD_BITS,
    )


def keep_only(kept: Collection[Capability]) -> None:
    """Drop every capability that is not in `kept`, and prevent the process from gaining more.

    Programs started later have at most the capabilities in `kept`, also as root, and a
    set-user-ID program gives them none (no_new_privs). A user other than root who has them as
    ambient capabilities still passes them on, for example to the process that preempts a vCPU.

    Raises:
        HostError: the kernel refuses. capset(2) always allows fewer capabilities.
    """
    if Capability.BPF in kept and held().permitted >> Capability.BPF == 0:
        kept = {*kept, Capability.SYS_ADMIN}  # Linux before 5.8 has no CAP_BPF
    libc = ctypes.CDLL(None, use_errno=True)
    # The bounding set first, because this needs CAP_SETPCAP. Without CAP_SETPCAP, exec cannot
    # add capabilities either, because of no_new_privs.
    for number in range(_MOST_CAPABILITIES):
        if number not in {int(capability) for capability in kept}:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    now = held()
    mask = sum(1 << capability for capability in set(kept))
    words = (_Data * 2)()
    for i in range(2):
        left = (now.permitted & mask) >> (i * _WORD_BITS) & 0xFFFFFFFF
        words[i].permitted = left
        words[i].effective = left & now.effective >> (i * _WORD_BITS)
        # A capability that is not inheritable leaves the ambient set, too (capabilities(7)).
        words[i].inheritable = left & now.inheritable >> (i * _WORD_BITS)
    try:
        _call("capset", ctypes.byref(_header()), words)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        raise HostError(
            f"Privileges cannot be given up ({error}).",
            "Check whether a security module forbids capset(2) or prctl(2).",
        ) from error


def become(uid: int, gid: int, groups: Collection[int]) -> None:
    """Become another user permanently, without any capability.

    Raises:
        OSError: changing the user is not permitted.
        HostError: as keep_only().
    """
    if (os.geteuid(), os.getegid(), set(os.getgroups())) != (uid, gid, set(groups)):
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    keep_only(())


def _header() -> _Header:
    return _Header(_CAPABILITY_VERSION_3, 0)


def _call(name: str, *arguments: object) -> None:
    """Raise OSError when the libc function fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
