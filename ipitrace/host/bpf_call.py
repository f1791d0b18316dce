# SPDX-License-Identifier: Apache-2.0
"""The system call bpf(2), and how the kernel's BPF objects are listed with it."""

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from typing import Any, Final

_NUMBER: Final = {"x86_64": 321}
_OBJ_GET_INFO_BY_FD: Final = 15  # enum bpf_cmd, include/uapi/linux/bpf.h
NAME_BYTES: Final = 16  # BPF_OBJ_NAME_LEN, with the NUL


class Id(ctypes.Structure):
    """The part of union bpf_attr that the id commands use."""

    _fields_ = (
        ("start_id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    )


class ProgramLoad(ctypes.Structure):
    """The part of union bpf_attr that BPF_PROG_LOAD uses; what is 0 is as if it was absent."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * NAME_BYTES),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("func_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_info_cnt", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
    )


class _Info(ctypes.Structure):
    """The part of union bpf_attr that BPF_OBJ_GET_INFO_BY_FD uses."""

    _fields_ = (
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    )


@functools.cache
def _syscall() -> Any:  # noqa: ANN401 - a C function
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    return syscall


def bpf(command: int, attr: ctypes.Structure) -> int:
    """The result of `command` (enum bpf_cmd) with the used part of union bpf_attr.

    Raises OSError with the kernel's errno.
    """
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise OSError(0, "the number of the bpf system call is not known for this machine")
    result: int = _syscall()(
        ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(attr), ctypes.sizeof(attr)
    )
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def object_ids(next_id: int) -> Iterator[int]:
    """The ids of all objects that the command `next_id` lists. Raises OSError."""
    attr = Id()
    while True:
        try:
            bpf(next_id, attr)
        except FileNotFoundError:  # ENOENT: there is no further object
            return
        yield attr.next_id
        attr = Id(start_id=attr.next_id)


def read_info(fd: int, info: ctypes.Structure | ctypes.c_uint32) -> None:
    """Have the kernel fill in the beginning of its description of an object. Raises OSError."""
    size = ctypes.sizeof(info)
    bpf(_OBJ_GET_INFO_BY_FD, _Info(bpf_fd=fd, info_len=size, info=ctypes.addressof(info)))
