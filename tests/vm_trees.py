# SPDX-License-Identifier: Apache-2.0
"""Constructed /proc and debugfs trees of VMMs, path to text ("-> x" is a link to x).

Descriptors and system calls are spelled as QEMU 7.2 and Linux 6.18 show them; the command
lines are made up after each VMM's manual.
"""

from collections.abc import Mapping, Sequence

# A thread in KVM_RUN on descriptor 15; and KVM's own worker, a copy of it.
IN_KVM_RUN = "16 0xf 0xae80 0x0 0x0 0x5581056d6290 0x558105dc5260 0x7fec5affc530 0x7fec61ab5d6b"
WORKER = "16 0xf 0xae80 0x0 0x0 0x5581056d6290 0x0 0x0 0x0"
POLLING = "271 0x55813035a340 0x4 0x7ffcf889e6e0 0x0 0x8 0x0 0x7ffcf889e6c0 0x7fec61ab4366"
RUNNING = "running"


def in_kvm_run(fd: int) -> str:
    return IN_KVM_RUN.replace("0xf ", f"{fd:#x} ", 1)


def process(
    pid: int,
    argv: Sequence[str],
    fds: Mapping[int, str],
    tasks: Mapping[int, str],
    *,
    started_at: int = 355162,
    cpus: Mapping[int, str] | None = None,
    cgroup: str = "0::/user.slice/session-1.scope\n",
    uid: int = 107,
) -> dict[str, str]:
    """One process; `fds` are anon_inode names, `tasks` what each thread's syscall shows."""
    comm = argv[0].rsplit("/", 1)[-1][:15]
    rest = f"S 1 {pid} {pid} 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {started_at} 1 1"
    files = {
        f"/proc/{pid}/cmdline": "\0".join([*argv, ""]),
        f"/proc/{pid}/comm": comm,
        f"/proc/{pid}/exe": f"-> {argv[0]}",
        f"/proc/{pid}/stat": f"{pid} ({comm} ) 1) {rest}",
        f"/proc/{pid}/cgroup": cgroup,
        f"/proc/{pid}/status": f"Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n",
        f"/proc/{pid}/fd/0": "-> /dev/null",
    }
    files |= {f"/proc/{pid}/fd/{fd}": f"-> anon_inode:{name}" for fd, name in fds.items()}
    for tid, syscall in tasks.items():
        allowed = (cpus or {}).get(tid, "0-3")
        files[f"/proc/{pid}/task/{tid}/syscall"] = syscall
        files[f"/proc/{pid}/task/{tid}/status"] = f"Name:\tx\nCpus_allowed_list:\t{allowed}\n"
    return files


def debugfs(creator: int, vm_fd: int, vcpu_tids: Mapping[int, int | None]) -> dict[str, str]:
    """KVM's directory of one VM; None leaves the vCPU's thread unnamed, as old kernels do."""
    top = f"/sys/kernel/debug/kvm/{creator}-{vm_fd}"
    files = {f"{top}/exits": "1\n"}
    for index, tid in vcpu_tids.items():
        files[f"{top}/vcpu{index}/tsc-offset"] = "0\n"
        if tid is not None:
            files[f"{top}/vcpu{index}/pid"] = f"{tid}\n"
    return files


QEMU_FDS = {11: "kvm-vm", 12: "kvm-vcpu:0", 13: "[eventfd]", 15: "kvm-vcpu:1"}
QEMU_TASKS = {700: POLLING, 702: RUNNING, 703: IN_KVM_RUN, 704: WORKER}
QEMU_ARGV = (
    *("/usr/bin/qemu-system-x86_64", "-name", "guest=web,,1,debug-threads=on"),
    *("-uuid", "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "-m", "size=2097152k,slots=4"),
)
QEMU = process(
    700,
    QEMU_ARGV,
    QEMU_FDS,
    QEMU_TASKS,
    cpus={702: "1", 703: "2-3"},
    cgroup="0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n",
)
QEMU_DEBUGFS = debugfs(700, 11, {0: 702, 1: 703})
FIRECRACKER = process(
    800,
    ("/srv/jail/firecracker", "--id", "fc-1", "--api-sock", "/run/fc.sock"),
    {9: "kvm-vm", 10: "kvm-vcpu:0"},
    {800: POLLING, 801: in_kvm_run(10)},
)
