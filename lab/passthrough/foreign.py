# SPDX-License-Identifier: Apache-2.0
"""Runs on the emulated host: the effects of a guest's writes to the physical ICR.

A VM on CPUs 0 and 1 writes vectors and messages of its choice to the last CPU, and to all.
Then it runs a short storm of its own. The script prints the counts of /proc/interrupts on the
CPUs that never ran the VM, and for comparison those of the same VM without these writes.

With the argument `forever`, it starts one VM after another until it is killed and prints
nothing, as a source of interrupts for other programs to detect.
"""

import os
import sys
from pathlib import Path

from ipitrace.abi.storm import StormPattern, StormSendMethod, StormTargetState
from ipitrace.storm.driver import Hooks
from ipitrace.storm.micro.image import LogSizes, load_payload
from ipitrace.storm.micro.machine import Machine

WRITES = 200
IPIS = 100
VM_CPUS = (0, 1)
EVERYONE = 0xFFFFFFFF  # SDM vol. 3A, 11.12.9
NMI = 0x400

NOTIFICATION = 0xF2

# Vectors of Linux 6.12, arch/x86/include/asm/irq_vectors.h.
ATTEMPTS = (
    ("nothing", None),
    ("0xf2, posted-interrupt notification", NOTIFICATION),
    ("0xf1, wake-up of blocked vCPUs", 0xF1),
    ("0xf0, notification of nested guests", 0xF0),
    ("0xfd, reschedule", 0xFD),
    ("0xfc, function call", 0xFC),
    ("0xf6, irq_work", 0xF6),
    ("0xec, local timer", 0xEC),
    ("0x60, a vector of no device", 0x60),
    ("NMI", NMI),
)


def counts() -> dict[str, list[int]]:
    """Every row of /proc/interrupts that counts per CPU."""
    rows = {}
    with Path("/proc/interrupts").open() as file:
        n_cpus = len(file.readline().split())
        for line in file:
            name, _, rest = line.strip().partition(":")
            words = rest.split()[:n_cpus]
            if len(words) == n_cpus and all(word.isdecimal() for word in words):
                rows[name] = [int(word) for word in words]
    return rows


def apic_id(cpu: int) -> int:
    """The physical APIC id of a CPU."""
    here = -1
    with Path("/proc/cpuinfo").open() as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "processor":
                here = int(value)
            elif key.strip() == "apicid" and here == cpu:
                return int(value)
    raise LookupError(cpu)


def attempt(icr_low: int, destination: int, writes: int) -> tuple[int, int]:
    """Run one fresh VM; return the numbers of its own IPIs, sent and delivered."""
    logs = LogSizes(sends=IPIS, receipts_per_vcpu=IPIS)
    method = StormSendMethod.PASSTHROUGH
    with Machine(load_payload(), len(VM_CPUS), logs, method) as machine:
        machine.memory.write_params(
            pattern=StormPattern.UNICAST,
            target_state=StormTargetState.RUNNING_USER,
            send_method=method,
            target=1,
            max_incomplete=3,
            count=IPIS,
            pace_cycles=10_000,
            timeout_cycles=3_000_000_000,
        )
        machine.memory.write_foreign(icr_low, destination, writes)
        storm = machine.run(VM_CPUS, Hooks(), warmup=0, silence_s=120)
    return len(storm.sends), len(storm.receipts[1])


def annoy(cpu: int) -> None:
    """Send notifications to the CPU, from one VM after another."""
    while True:
        attempt(NOTIFICATION, apic_id(cpu), WRITES)


def try_all(others: list[int]) -> None:
    """Try all writes; each line is on disk before the next write."""
    last = others[-1]
    print(f"{WRITES} writes each; rows of /proc/interrupts that grew on CPUs {others}")
    for to, destination in ((f"CPU {last}", apic_id(last)), ("all CPUs", EVERYONE)):
        for name, icr_low in ATTEMPTS:
            before = counts()
            sent, delivered = attempt(icr_low or 0, destination, 0 if icr_low is None else WRITES)
            after = counts()
            grown = {
                row: [after[row][cpu] - before[row][cpu] for cpu in others]
                for row in after
                if any(after[row][cpu] != before[row][cpu] for cpu in others)
            }
            rows = " ".join(f"{row}+{'/'.join(map(str, by))}" for row, by in grown.items())
            print(f"{name} to {to}: {rows or 'none'}; its own IPIs: {delivered} of {sent}")
            sys.stdout.flush()
            os.fsync(sys.stdout.fileno())


def main() -> None:
    """Run once, or forever if the argument requests it."""
    others = sorted(os.sched_getaffinity(0) - set(VM_CPUS))
    os.sched_setaffinity(0, set(VM_CPUS))
    if sys.argv[1:] == ["forever"]:
        annoy(others[-1])
    try_all(others)


main()
