# SPDX-License-Identifier: Apache-2.0
"""The helper in a Linux guest: its path, and its report on the guest."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ipitrace.abi.storm import ABI_VERSION
from ipitrace.base.errors import HostError
from ipitrace.base.foreign import plain
from ipitrace.base.loading import load
from ipitrace.base.untrusted import parse_json
from ipitrace.host.fingerprint import TCG_CPU
from ipitrace.storm import limits
from ipitrace.storm.guest_json import checked, number, shown
from ipitrace.storm.linux.storm_file import other_version
from ipitrace.storm.transport.shell import Shell

MODULE: Final = "ipitrace_storm"
HELPER: Final = "ipitrace-storm"
INSTALLED: Final = "/var/lib/ipitrace"
"""The one folder in a guest that `ipitrace guest install` makes."""

SNP_GUEST: Final = "/sys/devices/system/cpu/sev/vmpl"
"""A file that only SEV-SNP guests have (Documentation/ABI/testing/sysfs-devices-system-cpu)."""

INSTALL: Final = "Put it there and load it: ipitrace guest install --vm ... --via ..."
_MOST_VERSION: Final = 0xFFFF_FFFF  # an unsigned int in storm_abi.h
_NOT_FOUND: Final = (126, 127)  # a POSIX shell's


@dataclass(frozen=True)
class Module:
    """The guest's kernel module; the other fields are None if it is not loaded."""

    loaded: bool
    version: str | None = None
    srcversion: str | None = None


@dataclass(frozen=True)
class HelperStatus:
    """The output of `ipitrace-storm status`.

    Attributes:
        kernel: the guest's release.
        n_cpus: the number of the guest's CPUs, including those that are offline.
        online: the numbers of the online CPUs.
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

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is not possible.
        """
        if not 1 <= self.n_cpus <= limits.GUEST_CPUS:
            raise ValueError(f"n_cpus is not 1 to {limits.GUEST_CPUS}")
        rising = all(cpu < following for cpu, following in pairwise(self.online))
        if not rising or not set(self.online) <= set(range(self.n_cpus)):
            raise ValueError("online is not a rising list of its CPUs")
        least, most = limits.TSC_KHZ
        if self.tsc_khz and not least <= self.tsc_khz <= most:
            raise ValueError(f"tsc_khz is not {least} to {most}")
        if len(self.unsupported) > limits.STATUS_REASONS:
            raise ValueError(f"unsupported has more than {limits.STATUS_REASONS} members")
        for text in self._texts():
            if len(text) > limits.STATUS_CHARS or not text.isprintable():
                raise ValueError("a text is too long, or cannot be printed")

    def _texts(self) -> Iterator[str]:
        module = self.module
        maybe = (self.apic_mode, module.version, module.srcversion)
        yield from (self.helper_version, self.kernel, *(text for text in maybe if text is not None))
        for name, reason in self.unsupported.items():
            yield from (name, reason)


def find_helper(shell: Shell) -> str:
    """The helper's path in the guest: the installed one, or one from a package.

    Raises:
        HostError: there is no helper, or the guest cannot be reached.
    """
    done = shell.run(["sh", "-c", f"PATH={INSTALLED}:$PATH; command -v {HELPER}"])
    if done.status != 0 or not done.text:
        raise HostError(f"The guest has no {HELPER}.", INSTALL)
    helper = done.text.splitlines()[-1]
    if len(helper) > limits.STATUS_CHARS or not helper.isprintable():
        raise HostError(
            f"The guest's path of {HELPER} is not valid: {shown(done.stdout)}.", INSTALL
        )
    return helper


def read_status(shell: Shell, helper: str) -> HelperStatus:
    """Run the helper's status command and parse its output.

    Raises:
        HostError: its answer is not valid, or it has another version.
    """
    done = shell.run([helper, "status"])
    if done.status in _NOT_FOUND:
        raise HostError(
            f"{helper} cannot be run in the guest: {plain(done.stderr)}",
            INSTALL,
        )
    if done.status != 0:
        raise HostError(
            f"{helper} reports: {plain(done.stderr) or f'no message, status {done.status}'}",
            "Install it again: ipitrace guest install --vm ... --via ...",
        )
    try:
        answer = checked(parse_json(done.stdout), dict, "the answer")
        version = number(answer, "abi_version", 0, _MOST_VERSION)
        if version != ABI_VERSION:
            raise other_version(version)
        names = HelperStatus.__dataclass_fields__
        return load(HelperStatus, {name: answer[name] for name in names if name in answer})
    except ValueError as error:
        raise HostError(
            f"The answer of {helper} is not valid: {shown(done.stdout)} ({plain(str(error))}).",
            "Install the one of this version of ipitrace: ipitrace guest install ...",
        ) from error


@dataclass(frozen=True)
class GuestCpus:
    """The content of a guest's /proc/cpuinfo.

    Attributes:
        apic_ids: each CPU's APIC id, by its number; None if not all are shown.
        native: whether there is no hypervisor.
        emulated: the emulator of the CPUs, None for real ones.
        protected_tsc: why the guest's host does not decide its TSC; None if it does.
    """

    apic_ids: tuple[int, ...] | None
    native: bool
    emulated: str | None
    protected_tsc: str | None = None


def read_cpus(shell: Shell, n_cpus: int) -> GuestCpus:
    """Read the guest's CPUs; `n_cpus` is their number.

    Raises:
        HostError: the guest cannot be reached, or the content is contradictory.
    """
    text = shell.run(["cat", "/proc/cpuinfo"]).text
    ids: dict[int, int] = {}
    flags: set[str] = set()
    cpu = None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            cpu = _number(value, limits.GUEST_CPUS - 1)
        elif name == "apicid" and cpu is not None:
            if cpu in ids:
                raise _invalid_cpus(f"CPU {cpu} is listed twice")
            ids[cpu] = _number(value, limits.APIC_ID)
        elif name == "flags":
            flags.update(value.split())
    if len(set(ids.values())) < len(ids):
        raise _invalid_cpus("two CPUs have the same APIC id")
    all_shown = all(cpu in ids for cpu in range(n_cpus))
    return GuestCpus(
        apic_ids=tuple(ids[cpu] for cpu in range(n_cpus)) if all_shown else None,
        native=bool(flags) and "hypervisor" not in flags,
        emulated="QEMU TCG" if TCG_CPU in text else None,
        protected_tsc=_protected_tsc(shell, flags),
    )


def _protected_tsc(shell: Shell, flags: AbstractSet[str]) -> str | None:
    """Why the guest's host does not decide its TSC, by the guest's own kernel; None if it does.

    Of a guest with Secure TSC, Linux marks the TSC as reliable (sme_early_init() in
    arch/x86/mm/mem_encrypt_amd.c, Linux 6.14), which it does not for a usual KVM guest. SNP_GUEST
    is there since Linux 6.11.
    """
    if "tdx_guest" in flags:
        return "its kernel shows that it is a TDX guest"
    if "tsc_reliable" in flags and shell.run(["cat", SNP_GUEST]).status == 0:
        return "its kernel shows that it is a SEV-SNP guest with Secure TSC"
    return None


def _number(value: str, most: int) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > len(str(most)):
        raise _invalid_cpus(f"'{plain(value, 20)}' is not a CPU number")
    if int(value) > most:
        raise _invalid_cpus(f"{value} is not a CPU number")
    return int(value)


def _invalid_cpus(why: str) -> HostError:
    return HostError(
        f"The guest's /proc/cpuinfo is not valid: {why}.", "Check what the guest shows there."
    )
