# SPDX-License-Identifier: Apache-2.0
"""The system call bpf(2)."""

import ctypes
import functools
import os
import platform
from typing import Any, Final

_NUMBER: Final = {"x86_64": 321}


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
