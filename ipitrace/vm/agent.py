# SPDX-License-Identifier: Apache-2.0
"""The way into a guest that its VM's command line shows: the QEMU guest agent's channel."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm.model import VirtualMachine

_PORT: Final = "org.qemu.guest_agent.0"  # the port's name, by which the agent finds it


def agent_url(vm: VirtualMachine, files: HostFiles = HOST) -> str | None:
    """How to reach the guest agent of `vm`, in the form that --via takes; None: not shown.

    Whether an agent runs in the guest is not known from here. libvirt keeps the channel of
    its domains to itself, so they are reached through it.
    """
    arguments = (files.text(f"/proc/{vm.pid}/cmdline") or "").split("\0")
    return agent_channel(arguments, vm.name)


def agent_channel(arguments: Sequence[str], name: str) -> str | None:
    """The same from a QEMU's `arguments` (argv) and its VM's `name`."""
    given = list(pairwise(arguments))
    devices = [_options(value) for option, value in given if option.lstrip("-") == "device"]
    wanted = {device.get("chardev") for device in devices if device.get("name") == _PORT}
    for option, value in given:
        channel = _options(value) if option.lstrip("-") == "chardev" else {}
        if channel.get("id") not in wanted - {None}:
            continue
        if any("/libvirt/" in argument for argument in arguments):
            return f"qga+libvirt://{quote(name, safe='')}"
        path = channel.get("path")
        return None if path is None else f"qga://{quote(path)}"
    return None


def _options(value: str) -> Mapping[str, Any]:
    """QEMU's option list: JSON, or key=value with commas between and commas doubled."""
    if value.startswith("{"):
        try:
            return dict(json.loads(value))
        except ValueError:
            return {}
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    return {key: rest for key, equals, rest in (p.partition("=") for p in parts) if equals}
