# SPDX-License-Identifier: Apache-2.0
"""Compile with bcc, without kernel headers, and with its output captured."""

import atexit
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ipitrace.base.errors import HostError
from ipitrace.tracer.bcc_import import import_bcc
from ipitrace.tracer.bpf_links import useful_line
from ipitrace.tracer.bpf_maps import describe_map
from ipitrace.tracer.bpf_object import BpfObject, BpfObjectError, MapSpec, detached

_KERNEL_SOURCE: Final = "BCC_KERNEL_SOURCE"


class CapturedText:
    """The text that was written to file descriptor 2 while it was captured."""

    text = ""


@contextmanager
def captured_stderr() -> Iterator[CapturedText]:
    """Capture file descriptor 2 of the whole process, because libbcc writes to it from C."""
    captured = CapturedText()
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with os.fdopen(os.memfd_create("ipitrace-stderr"), "w+b") as sink:
            os.dup2(sink.fileno(), 2)
            try:
                yield captured
            finally:
                os.dup2(kept, 2)
                sink.seek(0)
                captured.text = sink.read().decode("utf-8", "replace")
    finally:
        os.close(kept)


@contextmanager
def _kernel_source(stubs: Path) -> Iterator[None]:
    """Make bcc use `stubs` as the kernel's source tree."""
    former = os.environ.get(_KERNEL_SOURCE)
    os.environ[_KERNEL_SOURCE] = str(stubs)
    try:
        yield
    finally:
        if former is None:
            del os.environ[_KERNEL_SOURCE]
        else:
            os.environ[_KERNEL_SOURCE] = former


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change to `folder`: bcc's compiler searches the current folder for headers first."""
    former = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(former)
        os.close(former)


def compile_with_bcc(text: str, flags: list[str], directory: Path) -> BpfObject:
    """Compile `text`; its maps exist for a moment with the sizes that the text gives.

    Raises HostError. bcc changes the working directory during compilation.
    """
    bcc = import_bcc()
    stubs = directory / "stubs"
    failure: Exception
    with captured_stderr() as captured, _kernel_source(stubs), _inside(stubs):
        try:
            compiled = bcc.BPF(text=text.encode(), cflags=flags)
            try:
                return _extract(bcc, compiled)
            finally:
                compiled.cleanup()
                atexit.unregister(compiled.cleanup)
        except Exception as raised:  # noqa: BLE001  (bcc raises nothing narrower)
            failure = raised
    line = useful_line(captured.text) or str(failure)
    if isinstance(failure, BpfObjectError):
        line = str(failure)
    if "bpf map" in line.lower():
        raise HostError(
            "The kernel refused to create the maps for host events.",
            f"ipitrace needs mappable BPF arrays (Linux 5.5); bcc: {line}",
        ) from failure
    raise HostError(
        "The BPF programs do not compile with the installed bcc.",
        f"Report this with `python3 -c 'import bcc; print(bcc.__version__)'`; bcc: {line}",
    ) from failure


def _extract(bcc: ModuleType, compiled: Any) -> BpfObject:  # noqa: ANN401 - bcc has no types
    """The code and the maps of a bcc.BPF. Raises BpfObjectError or OSError."""
    lib, module = bcc.lib, compiled.module
    for function, result, arguments in (
        (lib.bpf_num_tables, ctypes.c_size_t, [ctypes.c_void_p]),
        (lib.bpf_table_name, ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]),
    ):
        function.restype, function.argtypes = result, arguments
    names: dict[int, str] = {}
    maps: list[MapSpec] = []
    for number in range(lib.bpf_num_tables(module)):
        name: bytes = lib.bpf_table_name(module, number)
        fd: int = lib.bpf_table_fd(module, name)
        names[fd] = name.decode()
        maps.append(describe_map(fd, name.decode()))
    functions: list[bytes] = [
        lib.bpf_function_name(module, number) for number in range(lib.bpf_num_functions(module))
    ]
    programs = (detached(one.decode(), compiled.dump_func(one), names) for one in functions)
    return BpfObject(tuple(maps), tuple(programs))
