# SPDX-License-Identifier: Apache-2.0
"""Confidential VMs, from the command line of their VMM.

KVM does not show the type of a VM, neither in debugfs nor elsewhere. The VMM's own command line
names it: QEMU's objects sev-guest, sev-snp-guest and tdx-guest (qapi/qom.json), and
cloud-hypervisor's --platform tdx=on, sev_snp=on (docs/intel_tdx.md there).

Of a TDX guest the TDX module decides the TSC's offset, of a SEV-SNP guest with Secure TSC the
processor's firmware. KVM then ignores changes of the offset (guest_tsc_protected in
arch/x86/kvm/x86.c), and the offset that it shows in debugfs means nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ipitrace.base.untrusted import parse_json

Kind = Literal["SEV", "SEV-ES", "SEV-SNP", "TDX"]

_OBJECTS: Final = ("-object", "--object")
_PLATFORM: Final = ("--platform",)
_ON: Final = ("on", "true", "yes", "y")  # QEMU's spellings; libvirt's JSON has true
_POLICY_ES: Final = 1 << 2  # SEV API specification, "Guest Policy"


@dataclass(frozen=True)
class Confidential:
    """How a VM is protected from its host.

    Attributes:
        kind: the technology.
        protected_tsc: the host does not decide the guest's TSC.
    """

    kind: Kind
    protected_tsc: bool


def confidential(arguments: Sequence[str]) -> Confidential | None:
    """How the VM of a QEMU or cloud-hypervisor with these arguments is protected; None: not at all.

    Never raises: an argument that cannot be parsed names nothing.
    """
    for value in _values(arguments, _OBJECTS):
        found = _of_object(_properties(value))
        if found is not None:
            return found
    for value in _values(arguments, _PLATFORM):
        given = _properties(value)
        if _is_on(given.get("tdx", "")):
            return Confidential("TDX", protected_tsc=True)
        if _is_on(given.get("sev_snp", "")):
            return Confidential("SEV-SNP", protected_tsc=False)
    return None


def _of_object(given: Mapping[str, str]) -> Confidential | None:
    kind = given.get("qom-type")
    if kind == "tdx-guest":
        return Confidential("TDX", protected_tsc=True)
    if kind == "sev-snp-guest":
        return Confidential("SEV-SNP", protected_tsc=_is_on(given.get("secure-tsc", "")))
    if kind == "sev-guest":
        try:
            policy = int(given.get("policy", "1"), 0)
        except ValueError:
            policy = 0
        return Confidential("SEV-ES" if policy & _POLICY_ES else "SEV", protected_tsc=False)
    return None


def _is_on(value: str) -> bool:
    return value.lower() in _ON


def _values(arguments: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The values of all occurrences, as `--name value` or `--name=value`."""
    for i, argument in enumerate(arguments):
        name, equals, given = argument.partition("=")
        if name not in names:
            continue
        if equals:
            yield given
        elif i + 1 < len(arguments):
            yield arguments[i + 1]


def _properties(value: str) -> Mapping[str, str]:
    """Key to value of "type,key=value,..." (the first part as qom-type), or of a JSON object."""
    if value.lstrip().startswith("{"):
        try:
            given = parse_json(value.encode(errors="replace"))
        except ValueError:
            return {}
        return {key: str(inner) for key, inner in given.items()} if isinstance(given, dict) else {}
    pairs = [part.partition("=") for part in value.split(",")]
    named = {key: inner for key, equals, inner in pairs if equals}
    first, equals, _ = pairs[0]
    return named if equals else {"qom-type": first} | named
