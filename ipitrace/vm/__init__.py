# SPDX-License-Identifier: Apache-2.0
"""The VMs of this host: find them, name them, tell when one is no longer itself."""

from ipitrace.vm.agent import agent_url
from ipitrace.vm.discovery import Discovery, discover, find_vms
from ipitrace.vm.identity import still_there
from ipitrace.vm.model import ApicMode, Vcpu, VirtualMachine
from ipitrace.vm.resolve import pick, resolve_vm

__all__ = [
    "ApicMode",
    "Discovery",
    "Vcpu",
    "VirtualMachine",
    "agent_url",
    "discover",
    "find_vms",
    "pick",
    "resolve_vm",
    "still_there",
]
