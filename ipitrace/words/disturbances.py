# SPDX-License-Identifier: Apache-2.0
"""Disturbances of a repetition: one table, in the order in which outputs and schemas list it."""

from enum import StrEnum


class DisturbanceKind(StrEnum):
    """The condition that changed; docs/measuring.md describes how each is checked."""

    MOVED = "moved"  # a vCPU's thread ran on another CPU
    STOPPED = "stopped"  # the guest sent nothing for a time
    SUSPENDED = "suspended"  # the host was suspended
    WAITED = "waited"  # a vCPU's thread waited for a CPU
    LATE = "late"  # ipitrace's own ticks were late
    STOLEN = "stolen"  # a hypervisor below took time from the vCPUs' CPUs
    FREQUENCY = "frequency"  # frequency of the vCPUs' CPUs, or its settings
    THROTTLED = "throttled"  # the vCPUs' CPUs were throttled because of heat
    HOTPLUG = "hotplug"  # CPUs went offline or came online
    NEIGHBOUR = "neighbour"  # another VM, BPF program or tracer started or ended
    RUN = "run"  # another run of ipitrace was active
