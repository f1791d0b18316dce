# SPDX-License-Identifier: Apache-2.0
"""Find the VM that a user's name selects."""

from collections.abc import Sequence
from typing import Final

from ipitrace.base.errors import UsageError
from ipitrace.base.units import processes
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.discovery import Discovery, discover
from ipitrace.vm.model import VirtualMachine

_MOST_LISTED: Final = 50


def resolve_vm(name: str, files: HostFiles = HOST) -> VirtualMachine:
    """Discover the VMs, and select the one VM with the name or alias `name`.

    Raises:
        UsageError: no VM or several VMs have this name; the hint lists the VMs.
    """
    return pick(discover(files), name)


def pick(found: Discovery, name: str) -> VirtualMachine:
    """The one VM of `found` with the name or alias `name`.

    Raises:
        UsageError: no VM or several VMs have this name; the hint lists the VMs.
    """
    matching = [vm for vm in found.vms if name in vm.aliases]
    if len(matching) == 1:
        return matching[0]
    hidden = _hidden(found)
    if matching:
        raise UsageError(
            f"{len(matching)} VMs have the name '{name}'.",
            f"Use one of: {_listed(matching, last=True)}.{hidden}",
        )
    known = f"The VMs are: {_listed(found.vms)}." if found.vms else "No KVM VM is visible."
    raise UsageError(f"There is no VM '{name}'.", known + hidden)


def _hidden(found: Discovery) -> str:
    """Which processes were not checked, or not completely."""
    text = ""
    if found.unreadable_processes:
        text += f" {processes(found.unreadable_processes)} cannot be inspected"
        if found.missing:
            text += f" (this needs {' and '.join(found.missing)}): run it with sudo"
        text += "."
    if found.unlisted is not None:
        text += f" {found.unlisted}."
    if found.odd:
        pids = ", ".join(f"{odd.pid}" for odd in found.odd[:_MOST_LISTED])
        text += f" Odd, see 'ipitrace list': pid {pids}{_more(len(found.odd))}."
    return text


def _listed(vms: Sequence[VirtualMachine], *, last: bool = False) -> str:
    """The VMs on one line; `last` prints pid:N, which is always unique, as the name.

    If the VMs do not all belong to one user, the user is printed, too.
    """
    names = []
    several = len({vm.uid for vm in vms}) > 1
    for vm in vms[:_MOST_LISTED]:
        notes = [] if last or vm.name == vm.own_name else [vm.own_name]
        if several:
            notes.append(f"user {'?' if vm.uid is None else vm.uid}")
        shown = vm.own_name if last else vm.name
        names.append(f"{shown} ({', '.join(notes)})" if notes else shown)
    return ", ".join(names) + _more(len(vms))


def _more(n: int) -> str:
    return f" and {n - _MOST_LISTED} more" if n > _MOST_LISTED else ""
