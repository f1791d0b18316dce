# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.crowd PROCESSES VMS VCPUS HZ`: many small VMs, until killed.

Each of the PROCESSES has VMS virtual machines with VCPUS vCPUs each. Every vCPU has a thread that
has entered KVM_RUN once, so that KVM knows it. The guests have no memory and never run. With HZ
above 0 the thread of each VM's first vCPU injects this number of interrupts per second, as a
device would (KVM_SIGNAL_MSI): KVM accepts them, and no guest handles them. Prints "mark" when all
VMs exist.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.storm.micro.kvm import Vcpu, Vm

_SIGNAL_MSI: Final = 0x4020AEA5  # include/uapi/linux/kvm.h
# struct kvm_msi: to APIC 0, physical, fixed, edge (SDM vol. 3A, 11.11); vector 0x51.
_MSI: Final = struct.pack("<6I8x", 0xFEE00000, 0, 0x51, 0, 0, 0)
_GET_LAPIC: Final = 0x8400AE8E
_SET_LAPIC: Final = 0x4400AE8F
_LAPIC_BYTES: Final = 1024
_SPIV: Final = slice(0xF0, 0xF4)  # SDM vol. 3A, 11.9: bit 8 enables the APIC
_SPIV_ON: Final = (0x1FF).to_bytes(4, "little")
_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h
_STACK_BYTES: Final = 256 << 10


@contextlib.contextmanager
def crowd(*size: int) -> Iterator[tuple[int, ...]]:
    """Run PROCESSES, VMS, VCPUS, HZ while inside; yields the ids of the processes with VMs."""
    words = [sys.executable, "-m", "bench.crowd", *map(str, size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "mark\n":
                raise HostError("The VMs could not be created.", "See the output above.")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield tuple(map(int, children.split()))
        finally:
            process.kill()


def main() -> None:
    """Create the VMs, report it, and wait."""
    n_processes, n_vms, n_vcpus, rate_hz = map(int, sys.argv[1:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    created_read, created_write = os.pipe()
    for _ in range(n_processes):
        if os.fork() == 0:
            _hold(n_vms, n_vcpus, rate_hz, created_write)
        if len(os.read(created_read, 1)) != 1:
            raise SystemExit("A VM could not be created.")
    print("mark", flush=True)
    signal.pause()


def _hold(n_vms: int, n_vcpus: int, rate_hz: int, created_fd: int) -> None:
    """A process with VMs; ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.stack_size(_STACK_BYTES)
    entered = threading.Semaphore(0)
    try:
        for _ in range(n_vms):
            vm = Vm()
            for index in range(n_vcpus):
                vcpu = vm.create_vcpu(index)
                hz = rate_hz if index == 0 else 0
                _switch_apic_on(vcpu)
                words = (vm, vcpu, hz, entered)
                threading.Thread(target=_run, args=words, daemon=True).start()
        for _ in range(n_vms * n_vcpus):
            entered.acquire()
        os.write(created_fd, b".")
        signal.pause()
    finally:
        os._exit(1)


def _switch_apic_on(vcpu: Vcpu) -> None:
    lapic = bytearray(_LAPIC_BYTES)
    ioctl(vcpu.fd, _GET_LAPIC, lapic)
    lapic[_SPIV] = _SPIV_ON
    ioctl(vcpu.fd, _SET_LAPIC, lapic)


def _run(vm: Vm, vcpu: Vcpu, rate_hz: int, entered: threading.Semaphore) -> None:
    """Enter KVM_RUN once without running the guest; then inject interrupts, or wait."""
    vcpu.ask_immediate_exit()
    with contextlib.suppress(InterruptedError):
        vcpu.run()
    entered.release()
    while rate_hz:
        time.sleep(1 / rate_hz)
        ioctl(vm.fd, _SIGNAL_MSI, _MSI)
    threading.Event().wait()


if __name__ == "__main__":
    main()
