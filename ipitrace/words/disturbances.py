# SPDX-License-Identifier: Apache-2.0
"""What can disturb a repetition: one table, in the order in which outputs and schemas list it."""

from enum import StrEnum


class DisturbanceKind(StrEnum):
    """The condition that changed; docs/measuring.md says how each is checked."""

    MOVED = "moved"  # a vCPU's thread, to another CPU
    STOPPED = "stopped"  # the guest sent nothing for a time
    SUSPENDED = "suspended"  # the host
    WAITED = "waited"  # a vCPU's thread, for a CPU
    LATE = "late"  # ipitrace's own ticks
    STOLEN = "stolen"  # the vCPUs' CPUs, by a hypervisor below
    FREQUENCY = "frequency"  # of the vCPUs' CPUs, and what governs it
    THROTTLED = "throttled"  # the vCPUs' CPUs, because of heat
    HOTPLUG = "hotplug"  # CPUs went offline or came online
    NEIGHBOUR = "neighbour"  # another VM, BPF program or tracer came or went
    RUN = "run"  # another run of ipitrace
