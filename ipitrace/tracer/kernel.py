# SPDX-License-Identifier: Apache-2.0
"""Asks this kernel what it offers to a tracer: BTF and tracefs formats."""

from collections.abc import Collection
from pathlib import Path

from ipitrace.tracer.btf import Arg, Btf, BtfError, tracepoint_args
from ipitrace.tracer.events import EventSpec
from ipitrace.tracer.formats import Column, parse_format
from ipitrace.tracer.program import Offer

BTF_DIR = Path("/sys/kernel/btf")
# KVM's tracepoints live in kvm.ko; where that is built in, vmlinux has them.
_MODULES = ("kvm", "kvm_intel", "kvm_amd")


def read_btf(directory: Path = BTF_DIR) -> list[Btf]:
    """The BTF of KVM's modules where there are any, then vmlinux's.

    Raises BtfError or OSError when vmlinux's cannot be read; a module without
    (readable) BTF is as good as absent.
    """
    vmlinux = Btf.read(directory / "vmlinux")
    found: list[Btf] = []
    for name in _MODULES:
        try:
            found.append(Btf.read(directory / name, vmlinux))
        except (OSError, BtfError):
            continue
    return [*found, vmlinux]


def raw_offer(events: Collection[EventSpec], directory: Path = BTF_DIR) -> Offer:
    """What BTF says about `events`; an offer that says why when there is no usable BTF."""
    args: dict[str, tuple[Arg, ...]] = {}
    try:
        blobs = read_btf(directory)
        for event in events:
            for btf in blobs:
                found = tracepoint_args(btf, event.tracepoint)
                if found is not None:
                    args[event.tracepoint] = found
                    break
        pid_offset = blobs[-1].member_offset("task_struct", "pid")
    except OSError as error:
        return Offer(no_args=f"the kernel has no BTF ({error.strerror})")
    except BtfError as error:
        return Offer(no_args=f"the kernel's BTF is unreadable ({error})")
    return Offer(args=args, task_pid_offset=pid_offset)


def classic_columns(events: Collection[EventSpec], tracefs: Path) -> dict[str, dict[str, Column]]:
    """The columns of those `events` that tracefs has."""
    columns: dict[str, dict[str, Column]] = {}
    for event in events:
        path = tracefs / "events" / event.category / event.tracepoint / "format"
        try:
            columns[event.tracepoint] = parse_format(path.read_text())
        except OSError:
            continue
    return columns
