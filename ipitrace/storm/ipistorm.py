# SPDX-License-Identifier: Apache-2.0
"""The helper in a Linux guest: where it is, and what it says of the guest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.errors import HostError
from ipitrace.host.fingerprint import TCG_CPU
from ipitrace.loading import load
from ipitrace.storm.abi import ABI_VERSION
from ipitrace.storm.shell import Shell
from ipitrace.storm.storm_file import other_version

HELPER: Final = "ipistorm"
INSTALLED: Final = "/var/lib/ipitrace"
"""The one folder in a guest that `ipitrace guest install` makes."""

INSTALL: Final = "Put it there and load it: ipitrace guest install --vm ... --via ..."
_NOT_FOUND: Final = (126, 127)  # a POSIX shell's


@dataclass(frozen=True)
class Module:
    """The guest's kernel module; the rest is None while it is not loaded."""

    loaded: bool
    version: str | None = None
    srcversion: str | None = None


@dataclass(frozen=True)
class HelperStatus:
    """What `ipistorm status` says.

    Attributes:
        kernel: the guest's release.
        n_cpus: of the guest, those that are offline among them.
        online: the numbers of the others.
        unsupported: name of a pattern, target state or send method to why the guest lacks it.
    """

    abi_version: int
    helper_version: str
    module: Module
    kernel: str
    n_cpus: int
    online: tuple[int, ...]
    apic_mode: str | None
    tsc_khz: int | None
    unsupported: Mapping[str, str]


def find_helper(shell: Shell) -> str:
    """The helper's path in the guest: the one we installed, or one from a package.

    Raises:
        HostError: there is none, or the guest cannot be reached.
    """
    done = shell.run(["sh", "-c", f"PATH={INSTALLED}:$PATH; command -v {HELPER}"])
    if done.status != 0 or not done.text:
        raise HostError(f"The guest has no {HELPER}.", INSTALL)
    return done.text.splitlines()[-1]


def read_status(shell: Shell, helper: str) -> HelperStatus:
    """Ask the helper.

    Raises:
        HostError: it does not answer as it should, or is of another version.
    """
    done = shell.run([helper, "status"])
    if done.status in _NOT_FOUND:
        raise HostError(f"{helper} cannot be run in the guest: {done.stderr}", INSTALL)
    if done.status != 0:
        raise HostError(
            f"{helper} says: {done.stderr or f'nothing, and ends with status {done.status}'}",
            "Install it again: ipitrace guest install --vm ... --via ...",
        )
    try:
        said = json.loads(done.text)
        if isinstance(said, dict) and said.get("abi_version") not in {None, ABI_VERSION}:
            raise other_version(said["abi_version"])
        known = {name: said[name] for name in HelperStatus.__dataclass_fields__}
        return load(HelperStatus, known)
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(
            f"{helper} answered something unknown: {done.text[:80]!r} ({error}).",
            "Install the one that belongs to this ipitrace: ipitrace guest install ...",
        ) from error


@dataclass(frozen=True)
class GuestCpus:
    """What a guest's /proc/cpuinfo says.

    Attributes:
        apic_ids: each CPU's, by its number; None where it does not show them all.
        native: no hypervisor below.
        emulated: the emulator that makes the CPUs up, None for real ones.
    """

    apic_ids: tuple[int, ...] | None
    native: bool
    emulated: str | None


def read_cpus(shell: Shell, n_cpus: int) -> GuestCpus:
    """Look at the guest's CPUs.

    Raises:
        HostError: the guest cannot be reached.
    """
    text = shell.run(["cat", "/proc/cpuinfo"]).text
    ids: dict[int, int] = {}
    flags: set[str] = set()
    cpu = None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            cpu = int(value)
        elif name == "apicid" and cpu is not None:
            ids[cpu] = int(value)
        elif name == "flags":
            flags |= set(value.split())
    shown = set(range(n_cpus)) <= ids.keys()
    return GuestCpus(
        apic_ids=tuple(ids[cpu] for cpu in range(n_cpus)) if shown else None,
        native=bool(flags) and "hypervisor" not in flags,
        emulated="QEMU TCG" if TCG_CPU in text else None,
    )
