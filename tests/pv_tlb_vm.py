# SPDX-License-Identifier: Apache-2.0
"""A VM with one vCPU that asks KVM for TLB flushes by its steal time, as a Linux guest does.

The guest only writes to a port for ever. Each write is an exit to user space, where the VMM writes
the guest's steal time in its place. KVM reads it at the next entry.

As a program, it makes this VM and runs it now and then; for each line of its input, a number, it
runs the VM that often with a request.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

# linux/kvm.h and asm/kvm_para.h
_CREATE_VM, _CREATE_VCPU, _VCPU_MMAP_SIZE, _RUN = 0xAE01, 0xAE41, 0xAE04, 0xAE80
_SET_USER_MEMORY_REGION, _SET_MSRS = 0x4020AE46, 0x4008AE89
_EXIT_IO = 2
_MSR_STEAL_TIME, _ENABLED = 0x4B564D03, 1
_PREEMPTED_AT, _FLUSH = 16, 1 << 1  # struct kvm_steal_time, KVM_VCPU_FLUSH_TLB
_STEAL_TIME, _ROM = 0x1000, 0xFFFFF000
_OUT_FOR_EVER = b"\xe6\x10\xeb\xfc"  # out %al, $0x10; jmp to it


class PvTlbVm:
    """The VM, run by the thread that calls run()."""

    def __init__(self) -> None:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
        self._vcpu = fcntl.ioctl(self._vm, _CREATE_VCPU, 0)
        self._state = mmap.mmap(self._vcpu, fcntl.ioctl(kvm, _VCPU_MMAP_SIZE, 0))
        os.close(kvm)
        self._memory, self._rom = mmap.mmap(-1, mmap.PAGESIZE), mmap.mmap(-1, mmap.PAGESIZE)
        self._rom[0xFF0 : 0xFF0 + len(_OUT_FOR_EVER)] = _OUT_FOR_EVER  # where a CPU begins
        for slot, (at, memory) in enumerate(((_STEAL_TIME, self._memory), (_ROM, self._rom))):
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            region = struct.pack("=IIQQQ", slot, 0, at, mmap.PAGESIZE, address)
            fcntl.ioctl(self._vm, _SET_USER_MEMORY_REGION, region)
        msr = struct.pack("=IIIIQ", 1, 0, _MSR_STEAL_TIME, 0, _STEAL_TIME | _ENABLED)
        assert fcntl.ioctl(self._vcpu, _SET_MSRS, bytearray(msr)) == 1

    def run(self, *, flush: bool) -> None:
        """To the next exit; with `flush`, another vCPU has asked for a flush before."""
        if flush:
            self._memory[_PREEMPTED_AT] |= _FLUSH
        fcntl.ioctl(self._vcpu, _RUN, 0)
        assert struct.unpack_from("=I", self._state, 8) == (_EXIT_IO,)


def main() -> None:
    vm = PvTlbVm()
    vm.run(flush=False)
    print("ready", flush=True)
    while True:
        vm.run(flush=False)
        if select.select([sys.stdin], [], [], 0.01)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            for _ in range(int(line)):
                vm.run(flush=True)
                vm.run(flush=False)
            print("done", flush=True)


if __name__ == "__main__":
    main()
