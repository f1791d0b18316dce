# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.flood N`: a VM that sends IPIs at the highest rate of KVM, until killed.

vCPU 0 broadcasts in a loop of two instructions. The others have their APICs enabled and a thread
each that does not run them. KVM therefore accepts N - 1 IPIs for each send, and no vCPU handles
them: many times the rate of a storm that waits for acknowledgements. Prints "mark" when it sends.
"""

import contextlib
import fcntl
import sys
import threading
from dataclasses import replace
from typing import Final

from ipitrace.abi.storm import StormSendMethod
from ipitrace.storm.micro.image import GuestMemory, LogSizes, load_payload
from ipitrace.storm.micro.kvm import Vcpu, Vm

_GET_LAPIC: Final = 0x8400AE8E  # include/uapi/linux/kvm.h
_SET_LAPIC: Final = 0x4400AE8F
_LAPIC_BYTES: Final = 1024
_SPIV: Final = slice(0xF0, 0xF4)  # SDM vol. 3A, 11.9: bit 8 enables the APIC
_SPIV_ON: Final = (0x1FF).to_bytes(4, "little")
_CODE: Final = bytes.fromhex(
    "b930080000"  # mov $0x830, %ecx: the x2APIC ICR
    "b8f0000c00"  # mov $0xc00f0, %eax: fixed, vector 0xf0, all but self
    "31d2"  # xor %edx, %edx
    "0f30"  # again: wrmsr
    "ebfc"  # jmp again
)


def main() -> None:
    """Send until killed."""
    n_vcpus = int(sys.argv[1])
    vm = Vm()
    memory = GuestMemory(replace(load_payload(), image=_CODE), n_vcpus, LogSizes(1, 1))
    vm.set_memory(memory.host_address, memory.size)
    sender, *others = [_vcpu(vm, memory, index) for index in range(n_vcpus)]
    threads = [threading.Thread(target=_enter, args=(vcpu,), daemon=True) for vcpu in others]
    for thread in threads:
        thread.start()
    print("mark", flush=True)
    sender.run()
    raise SystemExit(f"The sender stopped with exit reason {sender.exit_reason}.")


def _vcpu(vm: Vm, memory: GuestMemory, index: int) -> Vcpu:
    vcpu = vm.create_vcpu(index)
    special, general = memory.start_state(index, StormSendMethod.X2APIC, vcpu.special_registers())
    vcpu.set_special_registers(special)
    vcpu.set_registers(general)
    vcpu.set_runnable()
    lapic = bytearray(_LAPIC_BYTES)
    fcntl.ioctl(vcpu.fd, _GET_LAPIC, lapic)
    lapic[_SPIV] = _SPIV_ON
    fcntl.ioctl(vcpu.fd, _SET_LAPIC, lapic)
    return vcpu


def _enter(vcpu: Vcpu) -> None:
    """Enter KVM_RUN once without running the guest, so that KVM knows the vCPU's thread."""
    vcpu.ask_immediate_exit()
    with contextlib.suppress(InterruptedError):
        vcpu.run()
    threading.Event().wait()


if __name__ == "__main__":
    main()
