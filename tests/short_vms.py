# SPDX-License-Identifier: Apache-2.0
"""`python short_vms.py COUNT LIFE_S UID`: VMs of another VMM that live for a moment.

Each line of input is a number of VMs: so many processes are forked, each with one VM of two vCPUs.
vCPU 0 sends COUNT IPIs to vCPU 1, which is halted with its interrupts off: KVM accepts each, and
no handler delays the sender. The VM takes LIFE_S seconds for it, and ends with its process. When
all have ended, their process ids and the lives of the VMs in seconds are printed.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import ipitrace
from ipitrace.abi.storm import StormSendMethod
from ipitrace.storm.micro.image import GuestMemory, LogSizes, load_payload
from ipitrace.storm.micro.kvm import ExitReason, KvmVcpu, Vm

N_VCPUS: Final = 2
_CODE: Final = bytes.fromhex(
    "85ff"  # test %edi, %edi: the vCPU
    "7403"  # jz send
    "f4"  # halt: hlt
    "ebfd"  # jmp halt
    "b930080000"  # send: mov $0x830, %ecx: the x2APIC ICR
    "ba01000000"  # mov $1, %edx: to APIC 1
    "b8f0000000"  # mov $0xf0, %eax: fixed, vector 0xf0
    "0f30"  # again: wrmsr
    "e610"  # out %al, $0x10: back to user space
    "ebfa"  # jmp again
)
_BATCH: Final = 10  # sends between two pauses


@dataclass
class ShortVms:
    """A process that runs short VMs when told."""

    process: "subprocess.Popen[str]"

    def run(self, n_vms: int) -> dict[int, float]:
        """Run VMs at the same time, to their ends; how long each lived, by process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{n_vms}\n")
        self.process.stdin.flush()
        lines = [self.process.stdout.readline().split() for _ in range(n_vms)]
        assert self.process.stdout.readline() == "ended\n"
        return {int(pid): float(life_s) for pid, life_s in lines}


@contextlib.contextmanager
def short_vms(count: int, life_s: float, uid: int | None = None) -> Iterator[ShortVms]:
    """Ready to run VMs that send `count` IPIs each within `life_s`, as the user `uid`."""
    words = [str(count), str(life_s), str(os.getuid() if uid is None else uid)]
    with subprocess.Popen(
        [sys.executable, __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(ipitrace.__file__).parents[1])},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield ShortVms(process)
        finally:
            process.kill()


def _forked(count: int, life_s: float, uid: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        began_s = time.monotonic()
        vm = Vm()
        memory = GuestMemory(replace(load_payload(), image=_CODE), N_VCPUS, LogSizes(1, 1))
        vm.set_memory(memory.host_address, memory.size)
        sender, target = [_vcpu(vm, memory, index) for index in range(N_VCPUS)]
        os.setresuid(uid, uid, uid)
        threading.Thread(target=target.run, daemon=True).start()
        thread = threading.Thread(target=_send, args=(sender, count, began_s, life_s))
        thread.start()
        thread.join()
        os.write(1, f"{os.getpid()} {time.monotonic() - began_s:.3f}\n".encode())
    finally:
        os._exit(0)


def _vcpu(vm: Vm, memory: GuestMemory, index: int) -> KvmVcpu:
    vcpu = vm.create_vcpu(index)
    special, general = memory.start_state(index, StormSendMethod.X2APIC, vcpu.special_registers())
    vcpu.set_special_registers(special)
    vcpu.set_registers(general)
    vcpu.set_runnable()
    return vcpu


def _send(vcpu: KvmVcpu, count: int, began_s: float, life_s: float) -> None:
    for n_sent in range(1, count + 1):
        vcpu.run()
        if vcpu.exit_reason != ExitReason.IO:
            os.write(2, f"exit reason {vcpu.exit_reason}\n".encode())
            return
        if n_sent % _BATCH == 0:
            time.sleep(max(began_s + life_s * n_sent / count - time.monotonic(), 0))


def main() -> None:
    """Run what is asked for, until the input ends."""
    count, life_s, uid = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    for line in sys.stdin:
        for pid in [_forked(count, life_s, uid) for _ in range(int(line))]:
            os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
