# SPDX-License-Identifier: Apache-2.0
"""A Debian guest with sshd and the guest agent, running in QEMU's TCG for as long as needed."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ipitrace.measure.clocks import tsc_hz_of_host
from lab.common import kernel, rootfs
from lab.common.cache import cache_dir, product
from lab.common.chroot import SHARED, chroot, chroot_command
from lab.common.image import make_disk
from lab.common.initramfs import build_initramfs
from lab.common.steps import LabError, step

NAME = "guest1"
_INIT = Path(__file__).with_name("guest_init")
_QEMU = "qemu-system-x86"
_PACKAGES = (
    "busybox-static",
    "gcc",
    "iproute2",
    "kmod",
    "linux-headers-amd64",
    "make",
    "openssh-server",
    "qemu-guest-agent",
)
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
_SPARE_MIB = 256
_BOOT_S = 300


@dataclass(frozen=True)
class Running:
    """A running guest.

    Attributes:
        port: of this machine's loopback, where its sshd answers.
        agent: the socket of its agent.
        key: a file with the private key that may log in as root.
        host_key: of its sshd, "TYPE BASE64".
        console: what it printed.
    """

    port: int
    agent: Path
    key: Path
    host_key: str
    console: Path


@dataclass(frozen=True)
class Ssh:
    """A transport into a guest.

    Attributes:
        port: of the loopback.
        public_key: who may log in, in base64.
    """

    port: int
    public_key: str


@cache
def _root() -> Path:
    return rootfs.tools(*_PACKAGES)


def guest_disk() -> Path:
    """The guest's disk, which is read-only."""
    source = _root()

    def build(directory: Path) -> None:
        size = sum(f.lstat().st_blocks * 512 for f in source.rglob("*"))
        mib = int(size / (1 << 20) * 1.1) + _SPARE_MIB
        make_disk(source, directory / "guest.img", label=NAME, mib=mib)

    return product("guest-disk", [source, _SPARE_MIB], build) / "guest.img"


def guest_initramfs(of: kernel.Kernel, *, network: bool = True) -> Path:
    """The guest's initramfs.

    Args:
        of: the guest's kernel.
        network: with a driver for the network card.
    """
    modules = (*_MODULES, "virtio_net") if network else _MODULES
    return build_initramfs(of, _INIT, [f"guest={','.join(modules)}"])


def qemu_command(
    *,
    image: str,
    initramfs: str,
    disk: str,
    agent: str,
    console: str,
    ssh: Ssh | None = None,
    parameters: Sequence[str] = (),
) -> list[str]:
    """QEMU's command line without the accelerator; paths as QEMU sees them.

    Args:
        image: the kernel.
        initramfs: guest_initramfs().
        disk: guest_disk().
        agent: the socket of the guest's agent, to be made.
        console: a file, to be made.
        ssh: with a network card and sshd, too.
        parameters: more of them for the kernel.
    """
    words = "console=ttyS0 panic=-1 loglevel=5 mitigations=off tsc=reliable no_timer_check"
    words = " ".join([words, *parameters])
    network: list[str] = []
    if ssh is not None:
        words += f" lab_key={ssh.public_key}"
        forward = f"hostfwd=tcp:127.0.0.1:{ssh.port}-:22"
        network = ["-netdev", f"user,id=net,restrict=on,{forward}"]
        network += ["-device", "virtio-net-pci,netdev=net,romfile="]
    return [
        *("qemu-system-x86_64", "-name", NAME, "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}"),
        *("-kernel", image, "-initrd", initramfs, "-append", words),
        *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on"),
        *network,
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
    ]


def make_key(directory: Path) -> tuple[Path, str]:
    """A new key pair: the private key's file, and the public key in base64."""
    key = directory / "key"
    inside = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{SHARED}/key/key"]
    chroot(_root(), inside, {"key": directory})
    return key, (directory / "key.pub").read_text().split()[1]


def host_key() -> str:
    """The host key of the guest's sshd, "TYPE BASE64"."""
    text = (_root() / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    return " ".join(text.split()[:2])


@contextmanager
def running_guest(cpus: int = 3, more: Sequence[str] = ()) -> Iterator[Running]:
    """Boot the guest, and stop it on exit.

    Raises:
        LabError: a step failed, or it does not come up in five minutes.
    """
    chosen, disk = kernel.fetch(), guest_disk()
    initramfs = guest_initramfs(chosen)
    qemu = rootfs.tools(_QEMU)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=cache_dir()) as scratch:
        directory = Path(scratch)
        key, public_key = make_key(directory)
        port = _free_port()
        command = qemu_command(
            image=f"{SHARED}/kernel/{chosen.image.name}",
            initramfs=f"{SHARED}/initramfs/{initramfs.name}",
            disk=f"{SHARED}/disk/{disk.name}",
            agent=f"{SHARED}/run/agent",
            console=f"{SHARED}/run/console",
            ssh=Ssh(port, public_key),
            parameters=_tsc_rate(),
        )
        machine = ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", "1024"]
        lent = {
            "kernel": chosen.directory,
            "initramfs": initramfs.parent,
            "disk": disk.parent,
            "run": directory,
        }
        console = directory / "console"
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                *chroot_command(qemu, [*command, *machine, *more], lent),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            with step(f"boot the guest (Linux {chosen.release})"):
                _wait_until_ready(process, console)
            yield Running(port, directory / "agent", key, host_key(), console)
        finally:
            process.kill()  # unshare blocks SIGTERM; --kill-child kills QEMU, too
            process.wait()


def _tsc_rate() -> tuple[str, ...]:
    """The rate of the emulated TSC: with TCG it is that of the real one.

    Linux would measure it against a timer, and on a busy machine be wrong by a factor of ten.
    """
    hz = tsc_hz_of_host()
    return () if hz is None else (f"tsc_early_khz={hz / 1000:.0f}",)


def ssh_settings(port: int, *, key: str, known_hosts: str) -> str:
    """The text of an ssh_config with the guest's name."""
    return (
        f"Host {NAME}\n HostName 127.0.0.1\n Port {port}\n User root\n"
        f" IdentityFile {key}\n IdentitiesOnly yes\n UserKnownHostsFile {known_hosts}\n"
    )


def ssh_folder(guest: Running, directory: Path) -> Path:
    """A folder for PATH with an `ssh` that accepts the guest's name.

    ssh takes its own settings from the user's home and from no variable, so it needs
    telling by an option.
    """
    known = directory / "known_hosts"
    known.write_text(f"[127.0.0.1]:{guest.port} {guest.host_key}\n")
    settings = directory / "config"
    settings.write_text(ssh_settings(guest.port, key=str(guest.key), known_hosts=str(known)))
    ssh = directory / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {settings} "$@"\n')
    ssh.chmod(0o755)
    return ssh.parent


def _wait_until_ready(process: "subprocess.Popen[bytes]", console: Path) -> None:
    deadline_s = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline_s:
        said = console.read_text(errors="replace") if console.exists() else ""
        if "lab-guest: ready" in said:
            return
        if process.poll() is not None or "lab-guest: failed" in said:
            break
        time.sleep(0.5)
    tail = "\n".join(said.splitlines()[-15:])
    raise LabError(f"the guest did not start; the end of its console:\n{tail}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
