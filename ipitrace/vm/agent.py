# SPDX-License-Identifier: Apache-2.0
"""The QEMU guest agent's channel, from the command line of a VM."""

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
    """The address of a guest agent according to its VM's command line.

    Attributes:
        path: the path of the UNIX socket in the VMM's namespace; None if libvirt holds it.
        domain: the libvirt domain; None if there is none.
    """

    path: str | None = None
    domain: str | None = None


def agent_of(vm: VirtualMachine, files: HostFiles = HOST) -> AgentChannel | None:
    """The channel of `vm`'s guest agent. None if the command line has none.

    The channel does not show whether an agent runs in the guest. libvirt uses the channels of
    its domains exclusively, so they are reached through libvirt, if libvirt reports that this
    process is the domain: any user's command line may look like another user's domain.
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
    """The channel in a QEMU's `arguments` (argv); libvirt's domain is not set yet."""
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
    """QEMU's option list: JSON, or key=value pairs separated by commas, with doubled commas.

    Of JSON only the strings are used; invalid JSON has no options.
    """
    if value.startswith("{"):
        try:
            found = parse_json(value.encode(errors="replace"))
        except ValueError:
            return {}
        return {key: text for key, text in found.items() if isinstance(text, str)}
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    return {key: text for key, equals, text in (p.partition("=") for p in parts) if equals}
