# SPDX-License-Identifier: Apache-2.0
"""The kernel's account of BPF programs: how often each has run, and for how long.

The kernel keeps it only while it is requested (492ecee892c2, "bpf: enable program stats"), and
then for every BPF program of the host: each run costs two readings of a clock more.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.base.errors import HostError
from ipitrace.tracer.attaching import program_info

SYSCTL: Final = Path("/proc/sys/kernel/bpf_stats_enabled")

_SYS_BPF: Final = 321  # arch/x86/entry/syscalls/syscall_64.tbl
# include/uapi/linux/bpf.h: enum bpf_cmd, bpf_prog_type and bpf_stats_type
_PROG_LOAD: Final = 5
_PROG_TEST_RUN: Final = 10
_ENABLE_STATS: Final = 32
_SOCKET_FILTER: Final = 1
_RUN_TIME: Final = 0

_RETURN_0: Final = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_SHORTEST_PACKET: Final = bytes(14)  # ETH_HLEN in include/uapi/linux/if_ether.h
_RUNS: Final = 1000
_BATCHES: Final = 9


class _EnableStats(ctypes.Structure):
    """The member of union bpf_attr for _ENABLE_STATS."""

    _fields_ = (("type", ctypes.c_uint32),)


class _ProgLoad(ctypes.Structure):
    """The beginning of the member of union bpf_attr for _PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_char_p),
        ("license", ctypes.c_char_p),
    )


class _TestRun(ctypes.Structure):
    """The beginning of the member of union bpf_attr for _PROG_TEST_RUN."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
    )


@contextlib.contextmanager
def accounting() -> Iterator[None]:
    """Have the kernel account for the runs of BPF programs.

    A descriptor requests it (d46edd671a14, "bpf: Sharing bpf runtime stats with
    BPF_ENABLE_STATS", Linux 5.8), so it ends with this process even if the process is killed. In
    older kernels a sysctl requests it, and is set back at the end; SIGKILL prevents that.

    Raises:
        HostError: this process may not request it, or the kernel cannot account.
    """
    try:
        fd = _bpf(_ENABLE_STATS, _EnableStats(_RUN_TIME))
    except OSError as error:
        if error.errno != errno.EINVAL:  # the kernel knows the command
            raise _refused(error) from error
    else:
        try:
            yield
        finally:
            os.close(fd)
        return
    with _by_sysctl():
        yield


@contextlib.contextmanager
def _by_sysctl() -> Iterator[None]:
    try:
        former = SYSCTL.read_text()
        if int(former) == 0:
            SYSCTL.write_text("1\n")
    except OSError as error:
        raise _refused(error) from error
    try:
        yield
    finally:
        if int(former) == 0:
            SYSCTL.write_text(former)


def read_run_time(program_fds: Sequence[int]) -> NDArray[np.uint64]:
    """Runs and nanoseconds of each program so far, shape (programs, 2), for this process's fds.

    The kernel adds a run when it is over, and only while it accounts.

    Raises:
        HostError: the kernel has no account.
    """
    found = [program_info(fd) for fd in program_fds]
    try:
        rows = [(info["run_cnt"], info["run_time_ns"]) for info in found]
    except KeyError as error:
        raise HostError(
            f"The kernel has no account of BPF programs ({error} is not in their fdinfo).",
            "It needs Linux 5.1: run it without --probe-costs.",
        ) from error
    return np.array(rows, np.uint64).reshape(-1, 2)


def own_cost_ns() -> float:
    """What the kernel accounts for a program that only returns, in ns per run.

    This is the part of the account that is not the program's own: mainly one reading of the
    clock. It is the median of several batches of runs on this thread's CPU.

    Raises:
        HostError: the kernel does not account, or this process may not request it.
    """
    with accounting():
        fd = _bpf(_PROG_LOAD, _ProgLoad(_SOCKET_FILTER, len(_RETURN_0) // 8, _RETURN_0, b"GPL"))
        try:
            test_run = _TestRun(
                prog_fd=fd,
                data_size_in=len(_SHORTEST_PACKET),
                data_in=_SHORTEST_PACKET,
                repeat=_RUNS,
            )
            batches = []
            for _ in range(_BATCHES):
                before = read_run_time([fd])
                _bpf(_PROG_TEST_RUN, test_run)
                ((runs, ns),) = read_run_time([fd]) - before
                if runs != _RUNS:
                    raise HostError(
                        f"The kernel accounts for {runs} of {_RUNS} runs of a BPF program.",
                        "Run it without --probe-costs.",
                    )
                batches.append(int(ns) / _RUNS)
        finally:
            os.close(fd)
    return float(np.median(batches))


def _bpf(command: int, attr: ctypes.Structure) -> int:
    """Call bpf(2); the kernel takes what `attr` lacks as 0. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.syscall(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done


def _refused(error: OSError) -> HostError:
    return HostError(
        f"The kernel's account of BPF programs cannot be requested ({error.strerror}).",
        "It needs CAP_SYS_ADMIN and Linux 5.1: run it with sudo, or without --probe-costs.",
    )
