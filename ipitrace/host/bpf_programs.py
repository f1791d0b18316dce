# SPDX-License-Identifier: Apache-2.0
"""List the loaded BPF programs, and check whether loading is allowed, with bpf(2) itself."""

import ctypes
import os
from typing import Final

from ipitrace.host.bpf_call import Id, ProgramLoad, bpf, object_ids, read_info

# include/uapi/linux/bpf.h: enum bpf_cmd and enum bpf_prog_type.
_BPF_PROG_LOAD: Final = 5
_BPF_PROG_GET_NEXT_ID: Final = 11
_BPF_PROG_GET_FD_BY_ID: Final = 13
# KPROBE, TRACEPOINT, PERF_EVENT, RAW_TRACEPOINT, RAW_TRACEPOINT_WRITABLE, TRACING: the types
# that run on kernel events and can therefore slow an IPI's path.
TRACING_TYPES: Final = frozenset({2, 5, 7, 17, 24, 26})
_RAW_TRACEPOINT: Final = 17
_RETURN_0: Final = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit


def load_trivial_program() -> None:
    """Load a raw tracepoint program that does nothing, and unload it.

    Raises OSError if the kernel refuses it, or has no bpf(2).
    """
    code, licence = ctypes.create_string_buffer(_RETURN_0), ctypes.create_string_buffer(b"GPL")
    attr = ProgramLoad(
        prog_type=_RAW_TRACEPOINT,
        insn_cnt=len(_RETURN_0) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(licence),
    )
    os.close(bpf(_BPF_PROG_LOAD, attr))


def loaded_program_types() -> dict[int, int]:
    """Every loaded BPF program's type (enum bpf_prog_type) by program id.

    Raises OSError if the kernel refuses (it needs CAP_SYS_ADMIN) or has no bpf(2).
    """
    types: dict[int, int] = {}
    for program_id in object_ids(_BPF_PROG_GET_NEXT_ID):
        try:
            types[program_id] = _program_type(program_id)
        except FileNotFoundError:  # unloaded after it was listed
            continue
    return types


def _program_type(program_id: int) -> int:
    fd = bpf(_BPF_PROG_GET_FD_BY_ID, Id(start_id=program_id))
    try:
        # struct bpf_prog_info begins with __u32 type; the kernel fills only the given size.
        program_type = ctypes.c_uint32()
        read_info(fd, program_type)
        return program_type.value
    finally:
        os.close(fd)
