# SPDX-License-Identifier: Apache-2.0
"""The VMs of this host: find them, name them, tell when one is no longer itself."""

from ipitrace.vm.agent import agent_url
from ipitrace.vm.debugfs import vm_directory_names
from ipitrace.vm.discovery import Discovery, discover, find_vms
from ipitrace.vm.identity import changes, still_there
from ipitrace.vm.model import ApicMode, OddProcess, Vcpu, VirtualMachine
from ipitrace.vm.resolve import pick, resolve_vm
from ipitrace.vm.threads import process_of

__all__ = [
    "ApicMode",
    "Discovery",
    "OddProcess",
    "Vcpu",
    "VirtualMachine",
    "agent_url",
    "changes",
    "discover",
    "find_vms",
    "pick",
    "process_of",
    "resolve_vm",
    "still_there",
    "vm_directory_names",
]
