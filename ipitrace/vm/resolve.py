# SPDX-License-Identifier: Apache-2.0
"""From the name that a person gives to the VM that is meant."""

from collections.abc import Sequence
from typing import Final

from ipitrace.base.errors import UsageError
from ipitrace.base.units import processes
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.discovery import Discovery, discover
from ipitrace.vm.model import VirtualMachine

_MOST_LISTED: Final = 50


def resolve_vm(name: str, files: HostFiles = HOST) -> VirtualMachine:
    """Discover, and pick the one VM that answers to `name`.

    Raises:
        UsageError: none does, or several do; the hint lists what there is.
    """
    return pick(discover(files), name)


def pick(found: Discovery, name: str) -> VirtualMachine:
    """The one VM of `found` that answers to `name`.

    Raises:
        UsageError: none does, or several do; the hint lists what there is.
    """
    fitting = [vm for vm in found.vms if name in vm.aliases]
    if len(fitting) == 1:
        return fitting[0]
    hidden = _hidden(found)
    if fitting:
        raise UsageError(
            f"{len(fitting)} VMs answer to '{name}'.",
            f"Use one of: {_listed(fitting, last=True)}.{hidden}",
        )
    there = f"There are: {_listed(found.vms)}." if found.vms else "No KVM VM is to be seen."
    raise UsageError(f"There is no VM '{name}'.", there + hidden)


def _hidden(found: Discovery) -> str:
    """What was not, or not wholly, looked at."""
    said = ""
    if found.unreadable_processes:
        said += f" {processes(found.unreadable_processes)} may not be looked into"
        if found.missing:
            said += f" (that takes {' and '.join(found.missing)}): run it with sudo"
        said += "."
    if found.unlisted is not None:
        said += f" {found.unlisted}."
    if found.odd:
        pids = ", ".join(f"{odd.pid}" for odd in found.odd[:_MOST_LISTED])
        said += f" Odd, see 'ipitrace list': pid {pids}{_rest(len(found.odd))}."
    return said


def _listed(vms: Sequence[VirtualMachine], *, last: bool = False) -> str:
    """The VMs as one line; `last` takes pid:N, which is never shared, for the name.

    Where they are not all the same user's, whose they are is said.
    """
    names = []
    several = len({vm.uid for vm in vms}) > 1
    for vm in vms[:_MOST_LISTED]:
        beside = [] if last or vm.name == vm.own_name else [vm.own_name]
        if several:
            beside.append(f"user {'?' if vm.uid is None else vm.uid}")
        shown = vm.own_name if last else vm.name
        names.append(f"{shown} ({', '.join(beside)})" if beside else shown)
    return ", ".join(names) + _rest(len(vms))


def _rest(n: int) -> str:
    return f" and {n - _MOST_LISTED} more" if n > _MOST_LISTED else ""
