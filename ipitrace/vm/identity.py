# SPDX-License-Identifier: Apache-2.0
"""Check whether a VM has changed since its discovery."""

from collections.abc import Iterator

from ipitrace.host.descriptors import read_descriptors
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.debugfs import VmDirectory, read_vm_directory
from ipitrace.vm.model import VirtualMachine
from ipitrace.vm.threads import read_started_at, thread_ids


def still_there(vm: VirtualMachine, files: HostFiles = HOST) -> str | None:
    """Why `vm` is no longer the same VM ("its process has ended"), or None.

    One system call for each descriptor of the VMM and some for each vCPU: less than 1 ms.
    """
    return next(_differences(vm, files), None)


def changes(vm: VirtualMachine, files: HostFiles = HOST) -> str | None:
    """As still_there(), and also whether a vCPU runs whose thread was unknown."""
    gone = still_there(vm, files)
    if gone is not None or all(vcpu.tid is not None for vcpu in vm.vcpus):
        return gone
    directory = _directory(vm, files)
    running = directory.vcpu_tids if directory else {}
    return next(
        (
            f"vCPU {vcpu.index} runs now, in a thread that was not known"
            for vcpu in vm.vcpus
            if vcpu.tid is None and running.get(vcpu.index) is not None
        ),
        None,
    )


def _differences(vm: VirtualMachine, files: HostFiles) -> Iterator[str]:
    if read_started_at(vm.pid, files) != vm.started_at_ticks:
        yield "its process has ended"
        return
    descriptors = read_descriptors(vm.pid, files)
    if descriptors is None or vm.vm_fd not in descriptors.vm_fds:
        yield "its process has closed it"
        return
    threads = set(thread_ids(vm.pid, files))
    for vcpu in vm.vcpus:
        if vcpu.fd is not None and vcpu.fd not in descriptors.vcpu_fds:
            yield f"vCPU {vcpu.index} is gone"
        if vcpu.tid is not None and vcpu.tid not in threads:
            yield f"the thread of vCPU {vcpu.index} has ended"
    indexes = {vcpu.index for vcpu in vm.vcpus}
    if len(descriptors.vm_fds) == 1:
        for index in descriptors.vcpu_fds.values():
            if index is not None and index not in indexes:
                yield f"vCPU {index} was added"
    yield from _new_in_debugfs(vm, files)


def _new_in_debugfs(vm: VirtualMachine, files: HostFiles) -> Iterator[str]:
    before = {vcpu.index: vcpu.tid for vcpu in vm.vcpus}
    directory = _directory(vm, files)
    for index, tid in directory.vcpu_tids.items() if directory else ():
        if index not in before:
            yield f"vCPU {index} was added"
        elif None not in (tid, before[index]) and tid != before[index]:
            yield f"vCPU {index} runs in another thread now"


def _directory(vm: VirtualMachine, files: HostFiles) -> VmDirectory | None:
    """The VM's own directory only, so that the cost does not grow with the number of VMs."""
    return None if vm.directory is None else read_vm_directory(vm.directory, files)
