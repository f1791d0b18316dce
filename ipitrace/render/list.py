# SPDX-License-Identifier: Apache-2.0
"""The host's VMs in each format."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.base.units import MIB, processes
from ipitrace.render.csv import csv_text
from ipitrace.render.grid import TIE
from ipitrace.render.page import MarkdownPage, Page, Table, TextPage, document
from ipitrace.vm import OWN_NAME, Discovery, Vcpu, VirtualMachine

_MOST_ODD = 20
_NOTHING = "-"
_HEADERS = ("name", "VMM", "pid", "vCPUs", "memory", "APIC", "CPUs")
_TEXT = (0, 1, 5, 6)
_COLUMNS = (
    *("name", "vmm", "pid", "uid", "vcpus", "memory_bytes", "apic_mode", "kvm_backend"),
    *("cpus", "threads"),
)


def render_list(found: Discovery, width: int = PIPE_WIDTH) -> str:
    """The VMs, their threads, and what could not be seen, as text of `width` columns."""
    return _render(found, TextPage(width))


def render_list_markdown(found: Discovery) -> str:
    """The same as Markdown."""
    return _render(found, MarkdownPage())


def render_list_json(found: Discovery) -> str:
    """The whole Discovery, as schemas/list.schema.json describes it."""
    return json.dumps(found.to_dict(), indent=2) + "\n"


def render_list_csv(found: Discovery) -> str:
    """One row for each VM; an unknown value is empty."""
    rows = [(*_known(vm), " ".join(_tids(vm))) for vm in found.vms]
    return csv_text(_COLUMNS, (dict(zip(_COLUMNS, row, strict=True)) for row in rows))


def _render(found: Discovery, page: Page) -> str:
    found = plain_values(found)
    sections = [page.heading("KVM VMs of this host")]
    if found.vms:
        sections.append(page.table("", Table(_HEADERS, [_row(vm) for vm in found.vms], text=_TEXT)))
        threads = [(vm.name, _threads(vm)) for vm in found.vms]
        headers = ("name", "threads")
        title = "Threads by vCPU"
        sections.append(page.table(title, Table(headers, threads, text=(0, 1), headless=True)))
    else:
        sections.append(page.paragraph("No KVM VM was found."))
    sections.append(page.lines(("", remark) for remark in _remarks(found)))
    return document(sections)


def cpu_list(cpus: Sequence[int]) -> str:
    """Sorted CPU numbers in the kernel's list format: "0-3,8"."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and cpu == ranges[-1][-1] + 1:
            ranges[-1][1:] = [cpu]
        else:
            ranges.append([cpu])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def _row(vm: VirtualMachine) -> tuple[str, ...]:
    memory = _NOTHING if vm.memory_bytes is None else f"{vm.memory_bytes // MIB} MiB"
    return (
        vm.name,
        vm.vmm.replace("unknown VMM", "?"),
        f"{vm.pid}",
        f"{len(vm.vcpus)}",
        memory,
        vm.apic_mode or _NOTHING,
        _placement(vm.vcpus),
    )


def _known(vm: VirtualMachine) -> tuple[str, ...]:
    """A row of the CSV but for the threads."""
    numbers = (vm.pid, vm.uid, len(vm.vcpus), vm.memory_bytes)
    places = {cpu_list(vcpu.cpus) for vcpu in vm.vcpus}
    return (
        vm.name,
        vm.vmm,
        *("" if number is None else str(number) for number in numbers),
        vm.apic_mode or "",
        vm.backend or "",
        next(iter(places)) if len(places) == 1 else " ".join(cpu_list(v.cpus) for v in vm.vcpus),
    )


def _tids(vm: VirtualMachine) -> Iterator[str]:
    """The vCPUs' threads, in order."""
    yield from (_NOTHING if vcpu.tid is None else str(vcpu.tid) for vcpu in vm.vcpus)


def _placement(vcpus: Sequence[Vcpu]) -> str:
    """The CPUs on which all vCPUs may run; `pinned` or `several` where these differ."""
    places = {vcpu.cpus for vcpu in vcpus}
    if len(places) == 1:
        return cpu_list(next(iter(places))) or _NOTHING
    return "pinned" if all(len(place) == 1 for place in places) else "several"


def _threads(vm: VirtualMachine) -> str:
    one_place = len({vcpu.cpus for vcpu in vm.vcpus}) == 1
    parts = [
        f"{vcpu.index}: {_NOTHING if vcpu.tid is None else vcpu.tid}"
        + ("" if one_place or not vcpu.cpus else f" on {cpu_list(vcpu.cpus)}")
        for vcpu in vm.vcpus
    ]
    ways = {_WAYS[vcpu.evidence] for vcpu in vm.vcpus if vcpu.evidence in _WAYS}
    if ways:
        parts[-1] += f" (seen {' and '.join(sorted(ways))})"
    # No line is broken between a vCPU and its thread.
    return ", ".join(part.replace(" ", TIE) for part in parts) or "no vCPUs yet"


def _remarks(found: Discovery) -> Iterator[str]:
    """Why values are unknown, each reason once."""
    backends = sorted({vm.backend for vm in found.vms if vm.backend})
    if backends:
        yield f"KVM backend: {', '.join(backends)}"
    users: dict[int | None, list[str]] = {}
    for vm in found.vms:
        users.setdefault(vm.uid, []).append(vm.name)
    for uid, names in users.items():
        if uid is not None:
            yield f"user {uid}: {', '.join(names)}"
    concerned: dict[tuple[str, str], list[str]] = {}
    for vm in found.vms:
        for item, why in vm.unknown.items():
            concerned.setdefault((item, why), []).append(vm.name)
    for (item, why), names in concerned.items():
        word = _ITEMS.get(item, item)
        yield f"{', '.join(names)}: {word} not known, {why}"
    yield from _shared_names(found.vms)
    yield from _unseen(found)


def _shared_names(vms: Sequence[VirtualMachine]) -> Iterator[str]:
    """Names that several VMs have, and the VMs that have them."""
    shared = Counter(alias for vm in vms for alias in vm.aliases)
    for alias, n in shared.items():
        if n > 1 and not alias.startswith(OWN_NAME):
            whose = ", ".join(
                f"{vm.own_name} (user {_NOTHING if vm.uid is None else vm.uid})"
                for vm in vms
                if alias in vm.aliases
            )
            yield f"{n} VMs have the name '{alias}'; use another of their names: {whose}"


def _unseen(found: Discovery) -> Iterator[str]:
    """What was not examined, and why."""
    for odd in found.odd[:_MOST_ODD]:
        yield f"odd: {odd.says}"
    if len(found.odd) > _MOST_ODD:
        yield f"odd: {len(found.odd) - _MOST_ODD} more processes; all are in --json"
    if found.unreadable_processes:
        more = ", although no capability is missing"
        if found.missing:
            needs = " and ".join(found.missing)
            more = f" (this needs {needs}); to see their VMs: sudo ipitrace list"
        yield f"{processes(found.unreadable_processes)} cannot be inspected{more}"
    if found.unlisted is not None:
        yield f"{found.unlisted}; to see their VMs: sudo ipitrace list"


_WAYS = {"syscall": "in KVM_RUN", "kvm_entry": "at kvm_entry"}
_ITEMS = {
    "tid": "some threads",
    "apic_mode": "APIC mode",
    "memory_bytes": "memory",
    "index": "the vCPUs' ids",
    "fd": "the vCPUs' descriptors",
}
