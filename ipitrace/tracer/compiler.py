# SPDX-License-Identifier: Apache-2.0
"""Compile and load with bcc, without kernel headers, and with its output captured."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from ipitrace.base.errors import HostError
from ipitrace.base.signals import signals_deferred
from ipitrace.tracer.bcc_import import import_bcc
from ipitrace.tracer.program import HookPlan, Probe

_KERNEL_SOURCE: Final = "BCC_KERNEL_SOURCE"
_MAX_HINT: Final = 300  # characters of a compiler's or verifier's message that are printed


class Bpf(Protocol):
    """The used part of bcc.BPF, which has no type annotations."""

    RAW_TRACEPOINT: int
    TRACEPOINT: int
    KPROBE: int
    funcs: dict[bytes, Any]

    def __getitem__(self, table: bytes) -> Any: ...  # noqa: ANN401
    def load_func(self, func_name: bytes, prog_type: int) -> object: ...  # noqa: D102
    def attach_raw_tracepoint(self, *, tp: bytes, fn_name: bytes) -> object: ...  # noqa: D102
    def detach_raw_tracepoint(self, tp: bytes) -> object: ...  # noqa: D102
    def attach_tracepoint(self, *, tp: bytes, fn_name: bytes) -> object: ...  # noqa: D102
    def detach_tracepoint(self, tp: bytes) -> object: ...  # noqa: D102
    def attach_kprobe(self, *, event: bytes, fn_name: bytes) -> object: ...  # noqa: D102
    def detach_kprobe(self, event: bytes) -> object: ...  # noqa: D102
    def attach_kretprobe(self, *, event: bytes, fn_name: bytes) -> object: ...  # noqa: D102
    def detach_kretprobe(self, event: bytes) -> object: ...  # noqa: D102
    def cleanup(self) -> None: ...  # noqa: D102


class CapturedText:
    """The text that was written to file descriptor 2 while it was captured."""

    text = ""

    def useful_line(self) -> str:
        """The line with the reason: a compiler's first error, else the last line."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line.lower()]
        # The verifier's last line has statistics; the reason is the line before it.
        reasons = [line for line in lines if not line.startswith("processed ")]
        chosen = errors[0] if errors else (reasons or [""])[-1]
        return chosen[:_MAX_HINT]


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


@signals_deferred()
def compile_programs(text: str, flags: list[str], directory: Path) -> Bpf:
    """Compile `text` and create its maps; returns a bcc.BPF with nothing loaded or attached.

    Raises HostError. bcc changes the working directory during compilation.
    """
    bcc = import_bcc()
    stubs = directory / "stubs"
    with captured_stderr() as captured, _kernel_source(stubs), _inside(stubs):
        try:
            return cast("Bpf", bcc.BPF(text=text.encode(), cflags=flags))
        except Exception as raised:  # noqa: BLE001  (bcc raises nothing narrower)
            failure = raised
    line = captured.useful_line() or str(failure)
    if "bpf map" in line.lower():
        raise HostError(
            "The kernel refused to create the maps for host events.",
            f"ipitrace needs mappable BPF arrays (Linux 5.5) and memory for the rings; bcc: {line}",
        ) from failure
    raise HostError(
        "The BPF programs do not compile with the installed bcc.",
        f"Report this with `python3 -c 'import bcc; print(bcc.__version__)'`; bcc: {line}",
    ) from failure


@signals_deferred()
def load_programs(bpf: Bpf, planned: HookPlan) -> tuple[tuple[Probe, ...], dict[str, str]]:
    """Load each program: the programs that the verifier accepts, and the reasons for the others.

    Raises HostError if it accepts none.
    """
    types = {
        "raw": bpf.RAW_TRACEPOINT,
        "classic": bpf.TRACEPOINT,
        "kprobe": bpf.KPROBE,
        "kretprobe": bpf.KPROBE,
    }
    accepted: list[Probe] = []
    refused: dict[str, str] = {}
    for probe in planned.probes:
        with captured_stderr() as captured:
            try:
                bpf.load_func(probe.function.encode(), types[probe.hook])
                accepted.append(probe)
                continue
            except Exception as raised:  # noqa: BLE001  (bcc raises nothing narrower)
                failure = str(raised)
        refused[probe.event.name] = f"refused: {captured.useful_line() or failure}"
    if not accepted:
        raise HostError(
            "The kernel refused every BPF program.",
            next(iter(refused.values()), "There was no program to load."),
        )
    return tuple(accepted), refused
