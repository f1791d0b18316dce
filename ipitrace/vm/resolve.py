# SPDX-License-Identifier: Apache-2.0
"""From the name that a person gives to the VM that is meant."""

from collections.abc import Collection

from ipitrace.errors import UsageError
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.discovery import Discovery, discover
from ipitrace.vm.model import VirtualMachine


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
    hidden = (
        f" {found.unreadable_processes} processes may not be looked into: run it with sudo."
        if found.unreadable_processes
        else ""
    )
    if fitting:
        raise UsageError(
            f"{len(fitting)} VMs answer to '{name}'.",
            f"Use one of: {_listed(fitting, last=True)}.{hidden}",
        )
    there = f"There are: {_listed(found.vms)}." if found.vms else "No KVM VM is to be seen."
    raise UsageError(f"There is no VM '{name}'.", there + hidden)


def _listed(vms: Collection[VirtualMachine], *, last: bool = False) -> str:
    """The VMs as one line; `last` takes pid:N, which is never shared, for the name."""
    names = []
    for vm in vms:
        own = next(alias for alias in vm.aliases if alias.startswith("pid:"))
        names.append(own if last or vm.name == own else f"{vm.name} ({own})")
    return ", ".join(names)
