# SPDX-License-Identifier: Apache-2.0
"""Names of a VM from other programs: libvirt's domains, systemd's machines."""

import importlib
import re
from pathlib import PurePath
from typing import Any, Final

from ipitrace.host.files import HOST, HostFiles

_MACHINES: Final = "/run/systemd/machines"
_SYSTEM_URI: Final = "qemu:///system"  # not a session's URI: this would start a daemon


def machine_names(files: HostFiles = HOST) -> dict[int, str]:
    """systemd's name of each registered machine, by the leading process (machinectl)."""
    names: dict[int, str] = {}
    for name in files.names(_MACHINES):
        text = files.text(f"{_MACHINES}/{name}") or ""
        match = re.search(r"^LEADER=([0-9]{1,10})$", text, re.MULTILINE)
        if match and not name.startswith("unit:"):
            names[int(match[1])] = name
    return names


def scope_name(cgroup: str | None) -> str | None:
    r"""The machine in /proc/PID/cgroup: "guest1" of ".../machine-guest1.scope/...", or None.

    The name is escaped as in any unit ("machine-qemu\x2d1\x2dguest1.scope").
    """
    for part in PurePath((cgroup or "").replace("\n", "/")).parts:
        match = re.fullmatch(r"machine-(.+)\.scope", part)
        if match:
            return re.sub(r"\\x([0-9a-f]{2})", lambda hexed: chr(int(hexed[1], 16)), match[1])
    return None


def libvirt_names(uri: str = _SYSTEM_URI) -> dict[str, str]:
    """The name, by UUID, of every domain that runs under libvirt's system daemon.

    {} without the module libvirt (libvirt-python) or without the daemon: the name is then read
    from QEMU's command line, which is the same.
    """
    try:
        libvirt: Any = importlib.import_module("libvirt")
    except ImportError:
        return {}
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print to stderr
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return {domain.UUIDString(): domain.name() for domain in domains}
        finally:
            connection.close()
    except libvirt.libvirtError:
        return {}
