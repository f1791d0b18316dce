# SPDX-License-Identifier: Apache-2.0
"""Find the BTF of a kernel module among the kernel's BTF objects, with bpf(2)."""

import ctypes
import errno
import os
from typing import Final

from ipitrace.host.bpf_call import Id, bpf, object_ids, read_info

# include/uapi/linux/bpf.h: enum bpf_cmd.
_BTF_GET_FD_BY_ID: Final = 19
_BTF_GET_NEXT_ID: Final = 23
_NAME_BYTES: Final = 64  # MODULE_NAME_LEN is shorter


class _BtfInfo(ctypes.Structure):
    """struct bpf_btf_info since 5329722057d4, "bpf: Assign ID to vmlinux BTF" (Linux 5.11)."""

    _fields_ = (
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    )


def open_kernel_btf(name: str) -> int:
    """The descriptor of the BTF of a loaded module, or of the kernel itself ("vmlinux").

    Raises OSError: ENOENT if there is none, EPERM without CAP_SYS_ADMIN.
    """
    for number in object_ids(_BTF_GET_NEXT_ID):
        try:
            fd = bpf(_BTF_GET_FD_BY_ID, Id(start_id=number))
        except FileNotFoundError:  # it went away after it was listed
            continue
        try:
            if _kernel_name(fd) == name:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _kernel_name(fd: int) -> str | None:
    """The name of the BTF of the kernel or of a module; None for that of a program."""
    name = ctypes.create_string_buffer(_NAME_BYTES)
    info = _BtfInfo(name=ctypes.addressof(name), name_len=_NAME_BYTES)
    read_info(fd, info)
    return name.value.decode("utf-8", "replace") if info.kernel_btf else None
