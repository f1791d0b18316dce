# SPDX-License-Identifier: Apache-2.0
"""Opens the guest that `--vm` and `--via` name."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import quote

from ipitrace.base.errors import UsageError
from ipitrace.host.access import require_kvm
from ipitrace.host.cpus import Pinning, allowed_cpus, choose_cpus, read_topology, share_cpus
from ipitrace.storm.driver import Driver
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.micro.driver import MAX_VCPUS, MIN_VCPUS, MicroGuest
from ipitrace.storm.transport.registry import FORMS, LOCAL, open_agent_shell, open_shell
from ipitrace.storm.transport.shell import Shell
from ipitrace.vm import Discovery, VirtualMachine, agent_of, connect_agent, discover, pick
from ipitrace.words.scenarios import Scenario

MICRO: Final = "micro"
_DEFAULT_VCPUS: Final = 2
_OTHERS_TO_RUN: Final = (
    f"Use --vm {MICRO} for the built-in guest. With --via and --no-trace, ipitrace measures a "
    "guest without tracing its host."
)


@dataclass(frozen=True)
class Guest:
    """A guest, and what tracing on the host needs to know about it.

    Attributes:
        driver: runs storms in it.
        pinning: where its vCPUs run.
        pid: the process to trace; None if this host has none.
        untraced: the reason why there is none.
        own_pids: the processes of the measurement, which are not neighbours.
        shares_tsc: the guest's TSC follows from this host's by an offset and a ratio.
        tsc_stated_by: the source of the guest TSC's rate.
        ours: it is the built-in guest, which only ipitrace uses.
        odd: what cannot be read, or is malformed, in its VM's process; may quote the process.
    """

    driver: Driver
    pinning: Pinning
    pid: int | None
    untraced: str | None
    own_pids: frozenset[int]
    shares_tsc: bool = True
    tsc_stated_by: str = "the guest's kernel"
    ours: bool = False
    odd: tuple[str, ...] = ()


@contextlib.contextmanager
def open_guest(vm: str, via: str | None, *, trace: bool) -> Iterator[Guest]:
    """The guest that `vm` and `via` name; its transport is closed at the end.

    Args:
        vm: `micro`, `micro:N`, `local`, or the name of a VM on this host.
        via: see storm.transport; None for the first two, and for a VM with a guest agent.
        trace: the host will be traced, so the VM must be on this host.

    Raises:
        UsageError: no such guest, or no such transport.
        HostError: the guest cannot be reached, or cannot run storms.
    """
    if is_micro(vm, via):
        yield micro_guest(vcpus_of(vm))
        return
    if vm == LOCAL and via in {None, LOCAL}:
        with open_shell(LOCAL) as shell:
            yield _here(LinuxGuest.prepare(shell, None))
        return
    foreign = find_foreign(vm, via, trace=trace)
    with foreign.way.open() as shell:
        guest = _elsewhere(LinuxGuest.prepare(shell, foreign.machine), vm, foreign.machine)
        yield replace(guest, odd=foreign.odd)


def is_micro(vm: str, via: str | None) -> bool:
    """`vm` and `via` name the built-in guest."""
    return vm.partition(":")[0] == MICRO and via is None


@dataclass(frozen=True)
class Way:
    """A transport into a guest, not opened yet.

    Attributes:
        url: as --via has it.
        open: opens it. It raises what open_shell() raises, and an error if the transport does
            not belong to the VM.
    """

    url: str
    open: Callable[[], contextlib.AbstractContextManager[Shell]]


@dataclass(frozen=True)
class Foreign:
    """A guest other than the built-in one, before ipitrace connects to it.

    Attributes:
        machine: its VM; None if none is needed and none was found.
        way: the transport into it.
        odd: what cannot be read, or is malformed, in the VM's process, see vm.OddProcess.
    """

    machine: VirtualMachine | None
    way: Way
    odd: tuple[str, ...] = ()


def find_foreign(vm: str, via: str | None, *, trace: bool) -> Foreign:
    """The guest that open_guest() would open, without opening it.

    Raises:
        UsageError: no such guest, or its VM shows no transport.
    """
    check_names(vm, via)
    found = discover()
    must_be_there = trace or via is None
    machine = _machine(vm, found, must_be_there=must_be_there, otherwise=_OTHERS_TO_RUN)
    odd = tuple(odd.says for odd in found.odd if machine is not None and odd.pid == machine.pid)
    return Foreign(machine, _way(machine, vm, via), odd)


def open_way(vm: str, via: str | None) -> contextlib.AbstractContextManager[Shell]:
    """Open the transport into a guest other than the built-in one.

    The VM is searched for only without `via`.

    Raises:
        UsageError: no such transport.
    """
    if vm == LOCAL and via in {None, LOCAL}:
        return open_shell(LOCAL)
    check_names(vm, via)
    machine = None
    if not via:
        otherwise = "With --via, the VM need not be on this host."
        machine = _machine(vm, discover(), must_be_there=True, otherwise=otherwise)
    return _way(machine, vm, via).open()


def why_not(vm: str, via: str | None, scenarios: Iterable[Scenario]) -> dict[str, str]:
    """The names of the scenarios that a guest cannot run, and the reasons; may quote the guest.

    The built-in guest needs neither KVM nor root for this. Any other guest needs only its
    transport.

    Raises:
        UsageError, HostError: see open_guest().
    """
    with contextlib.ExitStack() as stack:
        if is_micro(vm, via):
            n_vcpus = _checked_vcpus(vcpus_of(vm))
            unsupported = _micro_driver(n_vcpus)[0].unsupported
        else:
            shell = stack.enter_context(open_way(vm, via))
            unsupported = LinuxGuest.prepare(shell, None).unsupported
        found = {scenario.name: unsupported(scenario) for scenario in scenarios}
    return {name: why for name, why in found.items() if why is not None}


def check_names(vm: str, via: str | None) -> None:
    """Check that `vm` and `via` can be combined.

    Raises:
        UsageError: they cannot.
    """
    if via is None and vm.partition(":")[0] != MICRO:
        return
    if vm.partition(":")[0] == MICRO or LOCAL in {vm, via}:
        if via is None:
            raise UsageError(
                f"--vm {vm} is the built-in guest, which has no kernel that could load a module.",
                f"Use --vm NAME for another guest, or '--vm {LOCAL}' for this machine itself.",
            )
        raise UsageError(
            f"--vm {vm} cannot be combined with --via {via}.",
            f"The built-in guest ({MICRO}) and this machine itself ('--vm {LOCAL}') need no --via. "
            "Use --vm NAME --via URL for any other guest.",
        )


def _way(machine: VirtualMachine | None, vm: str, via: str | None) -> Way:
    """The transport of --via, otherwise the one that the VM's process shows.

    Raises:
        UsageError: there is none.
    """
    if via is not None:
        return Way(via, partial(open_shell, via))
    found = None if machine is None else agent_of(machine)
    if machine is not None and found is not None:
        if found.path is not None:
            url = f"qga://{quote(found.path)}"
            return Way(url, partial(_open_channel, machine, found.path))
        if found.domain is not None:
            url = f"qga+libvirt://{quote(found.domain, safe='')}"
            return Way(url, partial(open_shell, url))
    raise UsageError(
        f"No transport into the guest '{vm}' was found: its VM shows no guest agent.",
        f"Specify one with --via: {FORMS}. `ipitrace watch --vm {vm}` needs none.",
    )


def _open_channel(machine: VirtualMachine, path: str) -> contextlib.AbstractContextManager[Shell]:
    """Open the agent at the socket that the VM's command line names.

    Raises:
        HostError: the socket is not the VM's.
    """
    return open_agent_shell(path, connect_agent(machine, path))


def micro_guest(n_vcpus: int) -> Guest:
    """The built-in guest.

    Raises:
        UsageError: it cannot have that many vCPUs.
        HostError: KVM is missing, or the payload was not built.
    """
    _checked_vcpus(n_vcpus)
    require_kvm()
    driver, pinning = _micro_driver(n_vcpus)
    own = os.getpid()
    return Guest(
        driver,
        pinning,
        own,
        None,
        frozenset({own}),
        tsc_stated_by="KVM_GET_TSC_KHZ",
        ours=True,
    )


def _micro_driver(n_vcpus: int) -> tuple[MicroGuest, Pinning]:
    """The driver, and where its vCPUs run unless they share CPUs."""
    allowed, topology = allowed_cpus(), read_topology()
    pinning = choose_cpus(n_vcpus, allowed, topology)
    shared = share_cpus(n_vcpus, allowed, topology)
    return MicroGuest.prepare(n_vcpus, pinning.cpus, shared), pinning


def _checked_vcpus(n_vcpus: int) -> int:
    """The same number, if the built-in guest can have that many vCPUs.

    Raises:
        UsageError: it cannot.
    """
    if not MIN_VCPUS <= n_vcpus <= MAX_VCPUS:
        raise UsageError(
            f"The micro-guest cannot have {n_vcpus} vCPUs.",
            f"Use {MIN_VCPUS} to {MAX_VCPUS} vCPUs, for example --vm {MICRO}:4.",
        )
    return n_vcpus


def vcpus_of(vm: str) -> int:
    """The number of the micro-guest's vCPUs, from `micro` or `micro:N`.

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(rf"{MICRO}(?::(\d{{1,6}}))?", vm)
    if match is None:
        raise UsageError(
            f"There is no guest '{vm}'.", f"Use --vm {MICRO}, or --vm {MICRO}:N for N vCPUs."
        )
    return int(match[1]) if match[1] else _DEFAULT_VCPUS


def _machine(
    name: str, found: Discovery, *, must_be_there: bool, otherwise: str
) -> VirtualMachine | None:
    """The VM of this name on this host; None if it is not needed and was not found.

    `otherwise` ends the hint. It describes what the command can do without the VM.
    """
    try:
        return pick(found, name)
    except UsageError as error:
        if not must_be_there:
            return None
        raise UsageError(error.message, f"{error.hint} {otherwise}") from error


def _here(driver: LinuxGuest) -> Guest:
    where = "this machine has no hypervisor" if driver.cpus.native else "ipitrace runs in the guest"
    return Guest(
        driver,
        Pinning(None, overcommitted=False, why=f"{where}; each storm's thread stays on its CPU"),
        None,
        f"there is no host to trace here: {where}",
        frozenset({os.getpid()}),
    )


def _elsewhere(driver: LinuxGuest, name: str, machine: VirtualMachine | None) -> Guest:
    if machine is None:
        absent = f"this host's KVM has no VM '{name}'"
        pinning = Pinning(None, overcommitted=False, why=f"unknown: {absent}")
        return Guest(driver, pinning, None, absent, frozenset({os.getpid()}), shares_tsc=False)
    own = frozenset({os.getpid(), machine.pid})
    return Guest(
        driver,
        _pinning(driver, machine),
        machine.pid,
        None,
        own,
        shares_tsc=driver.protected_tsc is None,
    )


def _pinning(driver: LinuxGuest, machine: VirtualMachine) -> Pinning:
    """Where the VM's vCPUs may run, as the VM's owner chose."""
    cpus = driver.pinned_cpus
    room = {cpu for vcpu in machine.vcpus for cpu in vcpu.cpus}
    crowded = 0 < len(room) < len(machine.vcpus)
    shared = cpus is not None and len(set(cpus)) < len(cpus)
    why = "pinned by the VM's owner" if cpus is not None else "not pinned: the vCPUs may move"
    if crowded or shared:
        why = (
            f"{len(machine.vcpus)} vCPUs on {len(room)} CPUs: the storm would measure the scheduler"
        )
    return Pinning(cpus, overcommitted=crowded or shared, why=why)
