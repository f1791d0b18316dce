# SPDX-License-Identifier: Apache-2.0
"""Load BPF programs with bpf(2), and attach them with bpf(2) and perf_event_open(2)."""

import ctypes
import fcntl
import os
import platform
from pathlib import Path
from typing import Final

from ipitrace.host.bpf_btf import open_kernel_btf
from ipitrace.host.bpf_call import NAME_BYTES, ProgramLoad, bpf
from ipitrace.host.files import HOST, HostFiles, parse_cpu_list
from ipitrace.tracer.btf import BtfFunction
from ipitrace.tracer.program import Hook
from ipitrace.tracer.tracefs import find_tracefs

# include/uapi/linux/bpf.h: enum bpf_cmd and enum bpf_prog_type.
_PROG_LOAD: Final = 5
_RAW_TRACEPOINT_OPEN: Final = 17
_TYPES: Final = {"raw": 17, "classic": 5, "kprobe": 2, "kretprobe": 2, "fentry": 26, "fexit": 26}
_ATTACH_TYPES: Final = {"fentry": 24, "fexit": 25}  # enum bpf_attach_type
_LICENCE: Final = b"GPL"  # of bpf/*.c
_LOG_BYTES: Final = 1 << 20
_MAX_HINT: Final = 300  # characters of a compiler's or verifier's message that are printed
_LOADS: Final = 5  # the verifier gives up with EAGAIN if a signal arrives

# include/uapi/linux/perf_event.h.
_PERF_EVENT_OPEN: Final = {"x86_64": 298}
_PERF_TYPE_TRACEPOINT: Final = 2
_PERF_SAMPLE_RAW: Final = 1 << 10
_PERF_FLAG_FD_CLOEXEC: Final = 1 << 3
_IOC_ENABLE: Final = 0x2400
_IOC_SET_BPF: Final = 0x40042408
_KPROBE_EVENTS: Final = "/sys/bus/event_source/devices/kprobe"


class ProgramRefusedError(Exception):
    """The kernel did not accept a program; the text is the verifier's reason."""


class _RawTracepoint(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32))


class _PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr of PERF_ATTR_SIZE_VER1."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("bits", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
    )


def useful_line(text: str) -> str:
    """The line with the reason: a compiler's first error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()]
    # The verifier's last line has statistics; the reason is the line before it.
    reasons = [line for line in lines if not line.startswith("processed ")]
    chosen = errors[0] if errors else (reasons or [""])[-1]
    return chosen[:_MAX_HINT]


def load_program(name: str, code: bytes, hook: Hook, function: BtfFunction | None = None) -> int:
    """The descriptor of a program that the verifier has accepted.

    `function` is the function of a fentry or fexit hook. Raises ProgramRefusedError.
    """
    if function is None:
        return _accepted(name, code, ProgramLoad(prog_type=_TYPES[hook]))
    try:
        module = open_kernel_btf(function.module) if function.module else None
    except OSError as error:
        why = f"the BTF of {function.module} cannot be opened: {error.strerror}"
        raise ProgramRefusedError(why) from error
    attr = ProgramLoad(
        prog_type=_TYPES[hook],
        expected_attach_type=_ATTACH_TYPES[hook],
        attach_btf_id=function.type_id,
        attach_btf_obj_fd=module or 0,  # 0: vmlinux
    )
    try:
        return _accepted(name, code, attr)
    finally:
        if module is not None:
            os.close(module)


def _accepted(name: str, code: bytes, attr: ProgramLoad) -> int:
    held = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(_LICENCE)
    attr.insn_cnt, attr.insns = len(code) // 8, ctypes.addressof(held)
    attr.license = ctypes.addressof(licence)
    attr.prog_name = name.encode()[: NAME_BYTES - 1]
    try:
        return _load(attr)
    except OSError as error:
        failure = error
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attr.log_level, attr.log_size, attr.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    try:
        return _load(attr)
    except OSError as error:  # ENOSPC: the log is longer, and its end is missing
        line = useful_line(log.value.decode("utf-8", "replace"))
        raise ProgramRefusedError(line or failure.strerror or str(error)) from error


def _load(attr: ProgramLoad) -> int:
    for _ in range(_LOADS - 1):
        try:
            return bpf(_PROG_LOAD, attr)
        except BlockingIOError:
            continue
    return bpf(_PROG_LOAD, attr)


def open_link(program_fd: int, hook: Hook, target: str) -> int:
    """Attach a program; closing the returned descriptor detaches it.

    `target` is a tracepoint ("kvm_entry"; "kvm:kvm_exit" for a classic one) or a function. A
    fentry or fexit program has its function since it was loaded. Raises OSError.
    """
    if hook in _ATTACH_TYPES:
        return bpf(_RAW_TRACEPOINT_OPEN, _RawTracepoint(prog_fd=program_fd))
    if hook == "raw":
        name = ctypes.create_string_buffer(target.encode())
        attr = _RawTracepoint(name=ctypes.addressof(name), prog_fd=program_fd)
        return bpf(_RAW_TRACEPOINT_OPEN, attr)
    opened = _tracepoint(target) if hook == "classic" else _function(target, hook)
    try:
        fcntl.ioctl(opened, _IOC_SET_BPF, program_fd)
        fcntl.ioctl(opened, _IOC_ENABLE, 0)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _tracepoint(target: str) -> int:
    tracefs = find_tracefs()
    if tracefs is None:
        raise FileNotFoundError(2, "tracefs is not mounted")
    number = int((tracefs / "events" / Path(*target.split(":")) / "id").read_text())
    return _perf_event_open(
        _PerfEventAttr(
            type=_PERF_TYPE_TRACEPOINT,
            config=number,
            sample_period=1,
            sample_type=_PERF_SAMPLE_RAW,
            wakeup_events=1,
        )
    )


def _function(symbol: str, hook: Hook, files: HostFiles = HOST) -> int:
    """An event of the source that e12f03d7031a (Linux 4.17) added."""
    kind = files.number(f"{_KPROBE_EVENTS}/type")
    if kind is None:
        raise FileNotFoundError(2, "the kernel was built without kprobes")
    returns = (files.text(f"{_KPROBE_EVENTS}/format/retprobe") or "config:0").partition(":")[2]
    name = ctypes.create_string_buffer(symbol.encode())
    return _perf_event_open(
        _PerfEventAttr(
            type=kind,
            config=1 << int(returns) if hook == "kretprobe" else 0,
            sample_period=1,
            wakeup_events=1,
            config1=ctypes.addressof(name),
        )
    )


def _perf_event_open(attr: _PerfEventAttr, files: HostFiles = HOST) -> int:
    """An event for the threads of all processes; its program runs on every CPU."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(0, "the number of perf_event_open is not known for this machine")
    attr.size = ctypes.sizeof(attr)
    # The event belongs to a CPU that is online; the program belongs to the tracepoint.
    cpu = min(parse_cpu_list(files.text("/sys/devices/system/cpu/online") or "0"), default=0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    opened: int = libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(attr),
        ctypes.c_int(-1),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )
    if opened < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return opened
