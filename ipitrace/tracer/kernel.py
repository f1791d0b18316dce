# SPDX-License-Identifier: Apache-2.0
"""The features of this kernel for tracing: BTF, tracefs formats, functions to probe."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from ipitrace.abi.events import TIDS_PER_CELL
from ipitrace.base.loading import load
from ipitrace.host.files import HOST, HostFiles
from ipitrace.tracer import btf as btf_reader
from ipitrace.tracer.btf import Arg, Btf, BtfError, BtfFunction, function_in, tracepoint_args
from ipitrace.tracer.cache import keep, kept, key_of
from ipitrace.tracer.events import EventSpec
from ipitrace.tracer.formats import Column, parse_format
from ipitrace.tracer.program import KernelOffer

BTF_DIR = Path("/sys/kernel/btf")
# KVM's tracepoints are in kvm.ko; if it is built in, they are in vmlinux.
_MODULES = ("kvm", "kvm_intel", "kvm_amd")
_MOST_TIDS = 4 << 20  # PID_MAX_LIMIT, include/linux/threads.h
_NO_NESTING_SINCE = (6, 1)


@dataclass(frozen=True)
class _Found:
    """What BTF tells about events, and the place of a thread's id in task_struct."""

    args: Mapping[str, tuple[Arg, ...]]
    btf_functions: Mapping[str, BtfFunction]
    task_pid_offset: int | None


def _blobs(directory: Path) -> dict[str, bytes]:
    """The readable BTF files by module: vmlinux's as "", then KVM's modules'. Raises OSError."""
    found = {"": (directory / "vmlinux").read_bytes()}
    for name in _MODULES:
        try:
            found[name] = (directory / name).read_bytes()
        except OSError:
            continue
    return found


def _parsed(blobs: Mapping[str, bytes]) -> dict[str, Btf]:
    """KVM's modules, then vmlinux as "". Raises BtfError if vmlinux's BTF is not valid."""
    vmlinux = Btf(blobs[""])
    found: dict[str, Btf] = {}
    for name, blob in blobs.items():
        if not name:
            continue
        try:
            found[name] = Btf(blob, vmlinux)
        except BtfError:
            continue
    return {**found, "": vmlinux}


def n_tids(files: HostFiles = HOST) -> int:
    """A limit of thread ids, rounded up for the map vcpu_of_tid; kernel.pid_max is at most 4 Mi."""
    limit = files.number("/proc/sys/kernel/pid_max") or _MOST_TIDS
    return -(-limit // TIDS_PER_CELL) * TIDS_PER_CELL


def programs_nest(release: str) -> bool:
    """Whether an interrupt can run a raw tracepoint's program that its CPU is already running.

    Not since 05b24ff9b2cf, "bpf: Prevent bpf program recursion for raw tracepoint probes" (Linux
    6.1). A release that cannot be parsed is taken to be old.
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) < _NO_NESTING_SINCE


def _args(btf: Btf, event: EventSpec) -> tuple[Arg, ...] | None:
    return btf.func_args(event.symbol) if event.symbol else tracepoint_args(btf, event.name)


def raw_offer(events: Collection[EventSpec], directory: Path = BTF_DIR) -> KernelOffer:
    """The BTF of `events`; an offer with the reason if there is no usable BTF.

    The same BTF is searched for the same events once: the cache keeps the result.
    """
    try:
        blobs = _blobs(directory)
        digests = [(name, sha256(blob).hexdigest()) for name, blob in blobs.items()]
        key = key_of(
            (__file__, btf_reader.__file__),
            digests,
            [(event.name, event.symbol) for event in events],
        )
        found = _known(key)
        if found is None:
            found = _search(events, _parsed(blobs))
            keep(key, asdict(found))
    except OSError as error:
        return KernelOffer(no_args=f"the kernel has no BTF ({error.strerror})")
    except BtfError as error:
        return KernelOffer(no_args=f"the kernel's BTF is not valid ({error})")
    return KernelOffer(
        args=found.args,
        btf_functions=found.btf_functions,
        task_pid_offset=found.task_pid_offset,
    )


def _known(key: str) -> _Found | None:
    value = kept(key)
    try:
        return None if value is None else load(_Found, value)
    except ValueError:
        return None


def _search(events: Collection[EventSpec], blobs: Mapping[str, Btf]) -> _Found:
    """Raises BtfError."""
    args: dict[str, tuple[Arg, ...]] = {}
    functions: dict[str, BtfFunction] = {}
    for event in events:
        for btf in blobs.values():
            found = _args(btf, event)
            if found is not None:
                args[event.name] = found
                break
        function = function_in(blobs, event.symbol) if event.symbol else None
        if function is not None:
            functions[event.name] = function
    return _Found(args, functions, blobs[""].member_offset("task_struct", "pid"))


def classic_columns(events: Collection[EventSpec], tracefs: Path) -> dict[str, dict[str, Column]]:
    """The columns of those `events` that tracefs has."""
    columns: dict[str, dict[str, Column]] = {}
    for event in events:
        path = tracefs / "events" / event.category / event.name / "format"
        try:
            columns[event.name] = parse_format(path.read_text())
        except OSError:
            continue
    return columns


def function_offer(
    symbols: Collection[str], files: HostFiles = HOST
) -> tuple[frozenset[str], dict[str, str]]:
    """The functions of `symbols` that can be probed, and the reasons for the others.

    The functions that the kernel does not allow to be probed are listed in debugfs. If debugfs
    is not mounted, attaching fails and reports it.
    """
    # The event source of e12f03d7031a, "perf/core: Implement the 'perf_kprobe' PMU" (Linux 4.17).
    if not files.names("/sys/bus/event_source/devices/kprobe"):
        return frozenset(), dict.fromkeys(symbols, "the kernel was built without kprobes")
    text = files.text("/proc/kallsyms")
    if text is None:
        return frozenset(), dict.fromkeys(symbols, "/proc/kallsyms cannot be read")
    either = "|".join(map(re.escape, symbols))
    functions = Counter(re.findall(rf"^\S+ [tTwW] ({either})(?=\s|$)", text, re.MULTILINE))
    blacklist = files.text("/sys/kernel/debug/kprobes/blacklist") or ""
    refused = {line.split()[-1] for line in blacklist.splitlines() if line.strip()}
    why: dict[str, str] = {}
    for symbol in symbols:
        if not functions[symbol]:
            why[symbol] = "not a function of this kernel (absent, inlined or renamed)"
        elif functions[symbol] > 1:
            why[symbol] = "several functions of this kernel have this name"
        elif symbol in refused:
            why[symbol] = "the kernel forbids probing it"
    return frozenset(symbols) - why.keys(), why


def host_isa(files: HostFiles = HOST) -> int:
    """The value of kvm_exit's `isa` on this CPU (1 VMX, 2 SVM); 0 if the CPU has neither."""
    flags = re.search(r"^flags\s*:(.*)$", files.text("/proc/cpuinfo") or "", re.MULTILINE)
    names = flags[1].split() if flags else []
    return 1 if "vmx" in names else 2 if "svm" in names else 0
