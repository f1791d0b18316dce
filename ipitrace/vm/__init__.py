# SPDX-License-Identifier: Apache-2.0
"""The VMs of this host: finds and names them, and detects that one has changed."""

from ipitrace.vm.agent import AgentChannel, agent_of
from ipitrace.vm.agent_socket import connect_agent
from ipitrace.vm.debugfs import vm_directory_names
from ipitrace.vm.discovery import Discovery, discover, find_vms
from ipitrace.vm.identity import changes, still_there
from ipitrace.vm.model import OWN_NAME, ApicMode, OddProcess, Vcpu, VirtualMachine
from ipitrace.vm.resolve import pick, resolve_vm
from ipitrace.vm.threads import process_of, read_started_at

__all__ = [
    "OWN_NAME",
    "AgentChannel",
    "ApicMode",
    "Discovery",
    "OddProcess",
    "Vcpu",
    "VirtualMachine",
    "agent_of",
    "changes",
    "connect_agent",
    "discover",
    "find_vms",
    "pick",
    "process_of",
    "read_started_at",
    "resolve_vm",
    "still_there",
    "vm_directory_names",
]
