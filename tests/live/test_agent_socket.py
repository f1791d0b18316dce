# SPDX-License-Identifier: Apache-2.0
"""The socket that a VMM's command line names is opened as its owner, and only if it listens."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from least_rights import folder_of_theirs
from odd_vmms import NOBODY, python_named, run_as, vmm

from ipitrace.base.errors import HostError
from ipitrace.vm import AgentChannel, VirtualMachine, agent_of, connect_agent, resolve_vm

pytestmark = pytest.mark.live("root", "kvm")

PORT = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"
LISTEN = """
import socket
listening = socket.socket(socket.AF_UNIX)
listening.bind("agent.sock")
listening.listen()
"""


def agent_words(path: object) -> tuple[str, ...]:
    return ("-chardev", f"socket,path={path},server=on,id=agent", "-device", PORT)


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_theirs() as own:
        yield own


@contextlib.contextmanager
def listener(path: Path, mode: int) -> Iterator[list[socket.socket]]:
    """A daemon of root's; yields the connections it was given."""
    taken: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(mode)
        listening.listen()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listening.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield taken
        listening.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


def channel(vm: VirtualMachine) -> str:
    found = agent_of(vm)
    assert isinstance(found, AgentChannel)
    assert found.path is not None
    return found.path


def test_the_vmm_s_own_socket_by_a_relative_path(folder: Path, tmp_path: Path) -> None:
    """Relative to where the VMM runs, not to where we do."""
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm(*agent_words("agent.sock"), program=qemu, odd=LISTEN, cwd=str(folder)) as process:
        vm = resolve_vm(f"pid:{process.pid}")
        with connect_agent(vm, channel(vm)) as connection:
            assert connection.getpeername() == "agent.sock"


def test_a_socket_that_only_root_may_open_is_not_opened(folder: Path, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    path = folder / "docker.sock"
    with listener(path, 0o600) as taken, vmm(*agent_words(path), program=qemu) as process:
        vm = resolve_vm(f"pid:{process.pid}")
        with pytest.raises(HostError, match=f"as user {NOBODY}.*Permission denied"):
            connect_agent(vm, channel(vm))
        done = run_as(["guest", "status", "--vm", f"pid:{process.pid}"])
        assert done.returncode == 3, done.stderr
        assert taken == []


def test_another_s_socket_is_not_talked_to(folder: Path, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    path = folder / "open.sock"
    with listener(path, 0o666) as taken, vmm(*agent_words(path), program=qemu) as process:
        vm = resolve_vm(f"pid:{process.pid}")
        with pytest.raises(HostError, match=f"another process: {os.getpid()} listens on it"):
            connect_agent(vm, channel(vm))
        for connection in taken:
            assert connection.recv(1) == b"", "not a byte was said"


def test_a_command_line_like_a_libvirt_domain_s_is_no_domain(tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    words = ("-chardev", "socket,id=agent,fd=31", "-device", PORT, "-D", "/var/lib/libvirt/x")
    with vmm("-name", "others-domain", *words, program=qemu) as process:
        assert agent_of(resolve_vm(f"pid:{process.pid}")) is None


def test_options_nested_too_deep(tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    listed = '{"chardev":["x"],"name":"org.qemu.guest_agent.0"}'
    with vmm("-device", deep, "-device", listed, program=qemu) as process:
        assert agent_of(resolve_vm(f"pid:{process.pid}")) is None


def test_a_process_that_took_the_number_is_not_the_vm(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace  # noqa: PLC0415

    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm(*agent_words("agent.sock"), program=qemu, odd=LISTEN, cwd=str(folder)) as process:
        vm = resolve_vm(f"pid:{process.pid}")
        former = replace(vm, started_at_ticks=vm.started_at_ticks - 1)
        with pytest.raises(HostError, match="has ended"):
            connect_agent(former, "agent.sock")
