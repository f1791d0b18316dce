# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.nested`: measure a Debian guest under kvm_amd in the emulated AMD host."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.common import kernel, rootfs
from lab.common.cache import cache_dir
from lab.common.chroot import SHARED, chroot_command
from lab.common.collect import collect
from lab.common.commands import run
from lab.common.image import job_disk
from lab.common.initramfs import build_initramfs
from lab.common.job import build_wheel
from lab.common.rootfs import pip_install
from lab.common.session import BASE_COMMAND_LINE
from lab.common.steps import LabError, say, step
from lab.guest.machine import (
    guest_disk,
    guest_initramfs,
    host_key,
    make_key,
    qemu_command,
    ssh_settings,
)
from lab.guest.module import build_module
from lab.nested.root import root_image

_FAILED = 3
_JOB = Path(__file__).with_name("job.sh")
_PORT = 2222  # of the emulated host's loopback
_HOST = "-machine pc -accel tcg,thread=multi -cpu max -smp 3 -m 3072"
_GUEST = "-machine pc -accel kvm -cpu host -smp 2 -m 768"
_QEMU = "qemu-system-x86"
_TIMEOUT_S = 2700


def main() -> int:
    """Answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.nested", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="default: in the cache folder")
    parser.add_argument("more", nargs="*", help="options of `ipitrace run`, after --")
    asked = parser.parse_args()
    output = (asked.output or cache_dir() / "results" / "nested").resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        _run(output, asked.more)
    except LabError as error:
        say(f"failed: {error}")
        return _FAILED
    print((output / "stdout.txt").read_text(), end="")
    return 0


def _run(output: Path, arguments: Sequence[str]) -> None:
    chosen, root = kernel.fetch(), root_image()
    initramfs, disk = build_initramfs(chosen), guest_disk()
    with tempfile.TemporaryDirectory(prefix=".job-", dir=cache_dir()) as name:
        scratch = Path(name)
        _pack(scratch, chosen, arguments)
        console = output / "console.log"
        lent = {
            "kernel": chosen.directory,
            "initramfs": initramfs.parent,
            "root": root.parent,
            "guest": disk.parent,
            "job": scratch,
            "console": output,
        }
        drives = [
            *("-drive", _drive(0, f"root/{root.name}", "on")),
            *("-drive", _drive(1, "job/job.img", "off")),
            *("-drive", _drive(2, f"guest/{disk.name}", "on")),
        ]
        qemu = [
            *("timeout", str(_TIMEOUT_S), "qemu-system-x86_64", *_HOST.split()),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{SHARED}/console/{console.name}"),
            *("-kernel", f"{SHARED}/kernel/{chosen.image.name}"),
            *("-initrd", f"{SHARED}/initramfs/{initramfs.name}"),
            *("-append", BASE_COMMAND_LINE, *drives),
        ]
        with step(f"boot, run, power off (Linux {chosen.release})"):
            run(chroot_command(rootfs.tools(_QEMU), qemu, lent), name="QEMU")
        collect(scratch / "job.img", console, output)
    say(f"wrote {output}")


def _drive(index: int, place: str, snapshot: str) -> str:
    return f"file={SHARED}/{place},format=raw,if=ide,index={index},snapshot={snapshot}"


def _pack(scratch: Path, chosen: kernel.Kernel, arguments: Sequence[str]) -> None:
    """Make the job's disk: ipitrace, the guest but for its disk, and the key to it."""
    tree = scratch / "tree"
    (tree / "result").mkdir(parents=True)
    (tree / "bin").mkdir()
    module = build_module(rootfs.SUITE)
    if module.release != chosen.release:
        raise LabError(f"the module is for {module.release}, the kernel is {chosen.release}")
    pip_install(tree / "site", (build_wheel(scratch), "qemu.qmp"))  # for the guest's agent
    _, public_key = make_key(tree)
    command = qemu_command(
        image="/job/vmlinuz",
        initramfs="/job/initramfs",
        disk="/tmp/disk",  # noqa: S108 - inside, where nobody else is
        agent="/tmp/agent",  # noqa: S108
        console="/tmp/console",  # noqa: S108
        port=_PORT,
        public_key=public_key,
    )
    texts = {
        "run": _JOB.read_text(),
        "qemu": "\n".join([*command, *_GUEST.split()]),
        "arguments": "\n".join(arguments) + "\n",
        "known_hosts": f"[127.0.0.1]:{_PORT} {host_key()}\n",
        "config": ssh_settings(_PORT, key="/tmp/key", known_hosts="/job/known_hosts"),  # noqa: S108
        "bin/ssh": '#!/bin/sh\nexec /usr/bin/ssh -F /job/config "$@"\n',
    }
    for place, text in texts.items():
        (tree / place).write_text(text)
    (tree / "bin/ssh").chmod(0o755)
    shutil.copy(chosen.image, tree / "vmlinuz")
    shutil.copy(guest_initramfs(chosen), tree / "initramfs")
    shutil.copy(module.directory / "ipistorm.ko", tree)
    job_disk(tree, scratch / "job.img")


if __name__ == "__main__":
    sys.exit(main())
