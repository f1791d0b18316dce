# SPDX-License-Identifier: Apache-2.0
"""Properties of the host of a measurement that are known to influence the costs of IPIs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self, cast

from ipitrace.base.units import KIB
from ipitrace.host.files import HOST, HostFiles, parse_cpu_list

CPU_DIR: Final = "/sys/devices/system/cpu"
UNKNOWN_BACKEND: Final = "built-in/unknown"

# The CPU flag that a built-in backend needs. Without it, the backend's directory in /sys/module
# is ignored: a built-in module has one even if its initialisation failed.
_BACKEND_FLAG: Final = {"kvm_intel": "vmx", "kvm_amd": "svm"}
_TSC_FLAGS: Final = (
    "constant_tsc",
    "nonstop_tsc",
    "nonstop_tsc_s3",
    "tsc_known_freq",
    "tsc_reliable",
    "tsc_adjust",
    "tsc_scale",
)
TCG_CPU: Final = "QEMU TCG"
_BOCHS: Final = "Bochs"
_DMI_NAMES: Final = ("bios_vendor", "sys_vendor")
# Parameters printed by one_line, in its order; kvm_parameters has all of them.
_HEADLINE_PARAMETERS: Final = {
    "kvm_intel": ("enable_apicv", "enable_ipiv"),
    "kvm_amd": ("avic", "enable_ipiv"),
}


@dataclass(frozen=True)
class HostFingerprint:
    """A host as its kernel describes it. None means "could not be read", never a default."""

    cpu_model: str | None
    """The CPU's brand string ("AMD EPYC 7502P 32-Core Processor")."""
    cpu_vendor: str | None
    """CPUID vendor ("GenuineIntel")."""
    cpu_signature: str | None
    """Family-model-stepping in decimal ("6-142-10"): several models can share one name."""
    microcode: str | None
    cpus_online: int | None
    smt: str
    """"on", "off", "notsupported" or "unknown"."""
    kernel_release: str | None
    kernel_version: str | None
    """The build string: build number, preemption model, date."""
    kernel_cmdline: str | None
    kvm_backend: str | None
    """"kvm_intel", "kvm_amd", another kvm_* module, "built-in/unknown"; None without KVM."""
    kvm_parameters: Mapping[str, str] | None
    """Every readable parameter of kvm and kvm_*, by "module.parameter"; None without KVM."""
    mitigations: Mapping[str, str] | None
    """/sys/devices/system/cpu/vulnerabilities, by name."""
    governor: str | None
    """The cpufreq governor; several, separated by commas, if CPUs differ."""
    turbo: bool | None
    cpuidle: str | None
    """"driver/governor": the idle state of a blocked target's CPU decides its wake-up time."""
    clocksource: str | None
    tsc_flags: tuple[str, ...] | None
    """The CPU flags that describe the quality of the TSC as a clock."""
    x2apic: bool | None
    virtualised: bool | None
    """The CPU's hypervisor flag: this host is itself a guest."""
    emulated: str | None
    """The program that emulates this host's CPU; cycles are then not real time."""
    numa_nodes: int | None
    isolated_cpus: str | None
    """List format ("2-5"); "" means that there are none."""
    nohz_full_cpus: str | None
    """List format; "" means that there are none."""
    memory_bytes: int | None

    def to_dict(self) -> dict[str, object]:
        """The fingerprint as JSON types; `from_dict` reads it."""
        plain: dict[str, object] = asdict(self)
        if self.tsc_flags is not None:
            plain["tsc_flags"] = list(self.tsc_flags)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, object]) -> Self:
        """Read the output of `to_dict`. Items that another version did not write are None."""
        known: dict[str, Any] = {field.name: plain.get(field.name) for field in fields(cls)}
        known["smt"] = known["smt"] or "unknown"
        if known["tsc_flags"] is not None:
            known["tsc_flags"] = tuple(cast("list[str]", known["tsc_flags"]))
        return cls(**known)


def read_fingerprint(files: HostFiles = HOST) -> HostFingerprint:
    """Read the fingerprint of the host below `files`. Missing files never raise."""
    cpu = _first_cpu(files)
    flags = frozenset(cpu["flags"].split()) if "flags" in cpu else None
    online = _cpu_list(files, f"{CPU_DIR}/online")
    nodes = _cpu_list(files, "/sys/devices/system/node/online")
    return HostFingerprint(
        cpu_model=cpu.get("model name"),
        cpu_vendor=cpu.get("vendor_id"),
        cpu_signature=_signature(cpu),
        microcode=cpu.get("microcode") or files.text(f"{CPU_DIR}/cpu0/microcode/version"),
        cpus_online=len(online) if online else None,
        smt=read_smt(files),
        kernel_release=files.text("/proc/sys/kernel/osrelease"),
        kernel_version=files.text("/proc/sys/kernel/version"),
        kernel_cmdline=files.text("/proc/cmdline"),
        kvm_backend=_kvm_backend(files, flags),
        kvm_parameters=_kvm_parameters(files),
        mitigations=_texts(files, f"{CPU_DIR}/vulnerabilities"),
        governor=_governor(files),
        turbo=read_turbo(files),
        cpuidle=_cpuidle(files),
        clocksource=files.text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        tsc_flags=None if flags is None else tuple(f for f in _TSC_FLAGS if f in flags),
        x2apic=None if flags is None else "x2apic" in flags,
        virtualised=None if flags is None else "hypervisor" in flags,
        emulated=_emulator(files, cpu, flags),
        numa_nodes=len(nodes) if nodes else None,
        isolated_cpus=_list_text(files, f"{CPU_DIR}/isolated"),
        nohz_full_cpus=_list_text(files, f"{CPU_DIR}/nohz_full"),
        memory_bytes=_memory_bytes(files),
    )


def one_line(fp: HostFingerprint) -> str:
    """The host in one printed line of about 140 columns at most, without unknown items."""
    processor = [_short_model(fp.cpu_model)] if fp.cpu_model else []
    if fp.cpus_online is not None:
        processor.append(f"{fp.cpus_online} CPU{'s' if fp.cpus_online != 1 else ''}")
    smt = {"on": "SMT on", "off": "SMT off", "notsupported": "no SMT"}.get(fp.smt)
    processor += [smt] if smt else []
    parameters = fp.kvm_parameters or {}
    items = [
        ", ".join(processor),
        f"Linux {fp.kernel_release}" if fp.kernel_release else "",
        _backend_words(fp.kvm_backend, parameters),
        _halt_poll_words(parameters.get("kvm.halt_poll_ns")),
        "virtualised host" if fp.virtualised and not fp.emulated else "",
        "emulated host: cycles are not real time" if fp.emulated else "",
        f"microcode {fp.microcode}" if fp.microcode and not fp.emulated else "",
    ]
    return " · ".join(item for item in items if item) or "unknown host"


def _first_cpu(files: HostFiles) -> dict[str, str]:
    """The first block of /proc/cpuinfo: key to value."""
    block = (files.text("/proc/cpuinfo") or "").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _signature(cpu: Mapping[str, str]) -> str | None:
    parts = [cpu.get(key) for key in ("cpu family", "model", "stepping")]
    return None if None in parts else "-".join(cast("list[str]", parts))


def _emulator(files: HostFiles, cpu: Mapping[str, str], flags: frozenset[str] | None) -> str | None:
    """The emulator that runs this host, or None.

    QEMU's TCG uses this name in all CPU models that it defines itself (target/i386/cpu.c).
    Bochs copies the name of a real CPU and has no hypervisor flag, but its BIOS has its name in
    the DMI tables (bios/rombios32.c). Old QEMU with KVM has this BIOS, too, and the flag.
    """
    if TCG_CPU in cpu.get("model name", ""):
        return "QEMU TCG"
    signed = any(_BOCHS in (files.text(f"/sys/class/dmi/id/{name}") or "") for name in _DMI_NAMES)
    return _BOCHS if signed and flags is not None and "hypervisor" not in flags else None


def _cpu_list(files: HostFiles, path: str) -> tuple[int, ...] | None:
    text = files.text(path)
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        return None


def _list_text(files: HostFiles, path: str) -> str | None:
    text = files.text(path)
    return "" if text == "(null)" else text


def read_smt(files: HostFiles) -> str:
    """SMT as "on", "off", "notsupported" or "unknown".

    Combines smt/control and smt/active (Documentation/ABI/testing/sysfs-devices-system-cpu).
    """
    active = files.text(f"{CPU_DIR}/smt/active")
    control = files.text(f"{CPU_DIR}/smt/control")
    if active == "1":
        return "on"
    if control == "notsupported":
        return "notsupported"
    return "off" if active == "0" else "unknown"


def _kvm_backend(files: HostFiles, flags: frozenset[str] | None) -> str | None:
    """The module that runs guests: a loaded kvm_* module, else the only possible built-in one.

    Only loadable modules have a reference count in /sys/module. The initialisation of a loaded
    backend has succeeded. Several built-in backends may be listed; only one of them works.
    """
    modules = files.names("/sys/module")
    backends = [name for name in modules if name.startswith("kvm_")]
    loaded = [name for name in backends if files.text(f"/sys/module/{name}/refcnt") is not None]
    if loaded:
        return loaded[0] if len(loaded) == 1 else UNKNOWN_BACKEND
    plausible = [
        name
        for name in backends
        if name not in _BACKEND_FLAG or (flags is not None and _BACKEND_FLAG[name] in flags)
    ]
    if len(plausible) == 1:
        return plausible[0]
    return UNKNOWN_BACKEND if "kvm" in modules or backends else None


def _kvm_parameters(files: HostFiles) -> dict[str, str] | None:
    modules = [
        name for name in files.names("/sys/module") if name == "kvm" or name.startswith("kvm_")
    ]
    if not modules:
        return None
    return {
        f"{module}.{name}": value
        for module in modules
        for name, value in (_texts(files, f"/sys/module/{module}/parameters") or {}).items()
    }


def _texts(files: HostFiles, directory: str) -> dict[str, str] | None:
    """The readable files of a directory, by name; None if there is no directory."""
    names = files.listing(directory)
    if names is None:
        return None
    texts = {name: files.text(f"{directory}/{name}") for name in names}
    return {name: text for name, text in texts.items() if text is not None}


def _governor(files: HostFiles) -> str | None:
    cpus = (name for name in files.names(CPU_DIR) if re.fullmatch(r"cpu\d+", name))
    texts = {files.text(f"{CPU_DIR}/{cpu}/cpufreq/scaling_governor") for cpu in cpus}
    return ",".join(sorted(text for text in texts if text)) or None


def read_turbo(files: HostFiles) -> bool | None:
    """Whether frequencies above the nominal one are allowed; None if this is not reported."""
    no_turbo = files.number(f"{CPU_DIR}/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = files.number(f"{CPU_DIR}/cpufreq/boost")
    return None if boost is None else boost != 0


def _cpuidle(files: HostFiles) -> str | None:
    driver = files.text(f"{CPU_DIR}/cpuidle/current_driver")
    # Older kernels have only the _ro file, unless booted with cpuidle_sysfs_switch.
    governor = files.text(f"{CPU_DIR}/cpuidle/current_governor") or files.text(
        f"{CPU_DIR}/cpuidle/current_governor_ro"
    )
    return f"{driver}/{governor or 'unknown'}" if driver else None


def _memory_bytes(files: HostFiles) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB$", files.text("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * KIB if match else None


def _short_model(model: str) -> str:
    """Strip trademarks, clock and core count: "Intel Core i7-8650U", "AMD EPYC 7502P"."""
    short = re.sub(r"\((R|TM)\)|\bCPU\b|@.*$|\b\d+-Core Processor\b|\bProcessor\b", "", model)
    return " ".join(short.split())


def _backend_words(backend: str | None, parameters: Mapping[str, str]) -> str:
    """The backend with its IPI parameters ("kvm_intel apicv=Y ipiv=N"); "no KVM" without one."""
    if backend is None:
        return "no KVM"
    switches = [
        f"{name.removeprefix('enable_')}={parameters[f'{backend}.{name}']}"
        for name in _HEADLINE_PARAMETERS.get(backend, ())
        if f"{backend}.{name}" in parameters
    ]
    name = "KVM built in" if backend == UNKNOWN_BACKEND else backend
    return " ".join([name, *switches])


def _halt_poll_words(halt_poll_ns: str | None) -> str:
    if halt_poll_ns is None or not halt_poll_ns.isdecimal():
        return ""
    ns = int(halt_poll_ns)
    return f"halt_poll {ns / 1000:g} us" if ns else "no halt_poll"
