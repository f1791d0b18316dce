# SPDX-License-Identifier: Apache-2.0
"""The way into a guest that its VM's command line shows: the QEMU guest agent's channel."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ipitrace.base.untrusted import parse_json
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.discovery import COMMAND_LINE_BYTES
from ipitrace.vm.model import VirtualMachine

_PORT: Final = "org.qemu.guest_agent.0"  # the port's name, by which the agent finds it
_LIBVIRT_PIDS: Final = "/run/libvirt/qemu"  # root's; libvirt writes NAME.pid for each domain
_DOMAIN: Final = re.compile(r"[^/\x00-\x1f]{1,200}")


@dataclass(frozen=True)
class AgentChannel:
    """Where a VM's command line says that its guest agent is.

    Attributes:
        path: the UNIX socket, as the VMM would open it; None where libvirt holds it.
        domain: libvirt's domain; None where it is none.
    """

    path: str | None = None
    domain: str | None = None


def agent_of(vm: VirtualMachine, files: HostFiles = HOST) -> AgentChannel | None:
    """The channel of `vm`'s guest agent; None: not shown.

    Whether an agent runs in the guest is not known from here. libvirt keeps the channel of
    its domains to itself, so they are reached through it, if libvirt says that this process
    is the domain: anybody's command line may look like another's domain.
    """
    arguments = (files.text(f"/proc/{vm.pid}/cmdline", COMMAND_LINE_BYTES) or "").split("\0")
    channel = agent_channel(arguments)
    if channel is None or channel.path is not None:
        return channel
    for name in vm.aliases:
        if _DOMAIN.fullmatch(name) and files.number(f"{_LIBVIRT_PIDS}/{name}.pid") == vm.pid:
            return AgentChannel(domain=name)
    return None


def agent_channel(arguments: Sequence[str]) -> AgentChannel | None:
    """The same from a QEMU's `arguments` (argv); libvirt's domain is not named yet."""
    given = list(pairwise(arguments))
    devices = [_options(value) for option, value in given if option.lstrip("-") == "device"]
    wanted = {device.get("chardev") for device in devices if device.get("name") == _PORT}
    for option, value in given:
        channel = _options(value) if option.lstrip("-") == "chardev" else {}
        if channel.get("id") not in wanted - {None}:
            continue
        if any("/libvirt/" in argument for argument in arguments):
            return AgentChannel()
        path = channel.get("path")
        return AgentChannel(path) if path else None
    return None


def _options(value: str) -> Mapping[str, str]:
    """QEMU's option list: JSON, or key=value with commas between and commas doubled.

    Of JSON only the texts are taken; what is none has no options.
    """
    if value.startswith("{"):
        try:
            found = parse_json(value.encode(errors="replace"))
        except ValueError:
            return {}
        return {key: text for key, text in found.items() if isinstance(text, str)}
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    return {key: rest for key, equals, rest in (p.partition("=") for p in parts) if equals}
