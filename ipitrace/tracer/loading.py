# SPDX-License-Identifier: Apache-2.0
"""A set of BPF programs and maps in this process, made from compiled code."""

import contextlib
import errno
import os
import resource
from collections.abc import Mapping
from dataclasses import replace

from ipitrace.base.errors import HostError
from ipitrace.base.signals import signals_deferred
from ipitrace.tracer.bpf_links import ProgramRefusedError, load_program, open_link
from ipitrace.tracer.bpf_maps import BpfMap
from ipitrace.tracer.bpf_object import BpfObject, MapSpec
from ipitrace.tracer.btf import BtfFunction
from ipitrace.tracer.program import Hook, HookPlan, Probe


class Bpf:
    """Owns the maps, the loaded programs and their links, until close()."""

    @signals_deferred()
    def __init__(self, made: BpfObject, entries: Mapping[str, int] | None = None) -> None:
        """Create the maps; nothing is loaded yet.

        `entries` replaces the number of entries of the named maps. Raises HostError.
        """
        self._code = {program.name: program for program in made.programs}
        self._maps: dict[str, BpfMap] = {}
        self._programs: dict[str, tuple[int, Hook]] = {}
        self._links: dict[str, int] = {}
        entries = entries or {}
        try:
            for spec in made.maps:
                n_entries = entries.get(spec.name, spec.max_entries)
                self._maps[spec.name] = _created(replace(spec, max_entries=n_entries))
        except (OSError, ValueError, TypeError) as error:
            self.close()
            raise HostError(
                "The kernel refused to create the maps for host events.",
                "ipitrace needs mappable BPF arrays (Linux 5.5) and memory for the rings; "
                f"bpf(2): {error}",
            ) from error

    def __getitem__(self, name: str) -> BpfMap:
        return self._maps[name]

    def load(self, function: str, hook: Hook, btf: BtfFunction | None = None) -> None:
        """Have the verifier check a program; `btf` is as in load_program().

        Raises ProgramRefusedError.
        """
        if function in self._programs:
            return
        code = self._code.get(function)
        if code is None:
            raise ProgramRefusedError(f"there is no program {function}")
        linked = code.linked({name: one.map_fd for name, one in self._maps.items()})
        self._programs[function] = load_program(function, linked, hook, btf), hook

    def program_fd(self, function: str) -> int:
        """The descriptor of a loaded program."""
        return self._programs[function][0]

    def attach(self, function: str, target: str) -> None:
        """Attach a loaded program; see open_link(). Raises OSError."""
        self._links[function] = open_link(*self._programs[function], target)

    def detach(self, function: str) -> None:
        """Detach a program that is attached."""
        os.close(self._links.pop(function))

    @signals_deferred()
    def close(self) -> None:
        """Detach and free everything; mappings of maps stay valid."""
        for function in list(self._links):
            self.detach(function)
        for fd, _ in self._programs.values():
            os.close(fd)
        for one in self._maps.values():
            one.close()
        self._programs, self._maps = {}, {}


def _created(spec: MapSpec) -> BpfMap:
    try:
        return BpfMap(spec)
    except PermissionError as error:
        # Before Linux 5.11 (RLIMIT_MEMLOCK in d5299b67dd59) maps count as locked memory.
        if error.errno != errno.EPERM:
            raise
        unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        return BpfMap(spec)


def _loaded(bpf: Bpf, probe: Probe) -> Probe:
    """The probe that the verifier accepts: this one or the second choice."""
    try:
        bpf.load(probe.function, probe.hook, probe.btf)
    except ProgramRefusedError as error:
        if probe.second is None:
            raise
        try:
            return _loaded(bpf, probe.second)
        except ProgramRefusedError as other:
            raise ProgramRefusedError(
                f"{probe.hook}: {error}; {probe.second.hook}: {other}"
            ) from other
    return probe


@signals_deferred()
def try_attach(bpf: Bpf, probe: Probe) -> tuple[Probe, str]:
    """Attach one loaded program; if the kernel refuses, load and attach the second choice.

    Returns the probe that is attached and "", or `probe` and the reason of the failure.
    """
    why: list[str] = []
    tried: Probe | None = probe
    while tried is not None:
        try:
            bpf.load(tried.function, tried.hook, tried.btf)
            bpf.attach(tried.function, tried.target)
        except (OSError, ValueError, ProgramRefusedError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            why.append(f"{tried.hook}: {reason}" if probe.second else f"{reason}")
        else:
            return tried, ""
        tried = tried.second
    return probe, f"not attached: {'; '.join(why)}"


@signals_deferred()
def load_programs(bpf: Bpf, planned: HookPlan) -> tuple[tuple[Probe, ...], dict[str, str]]:
    """Load each program: the programs that the verifier accepts, and the reasons for the others.

    If it refuses a program, the second choice is loaded. Raises HostError if it accepts none.
    """
    accepted: list[Probe] = []
    refused: dict[str, str] = {}
    for probe in planned.probes:
        try:
            accepted.append(_loaded(bpf, probe))
        except ProgramRefusedError as error:
            refused[probe.event.name] = f"refused: {error}"
    if not accepted:
        raise HostError(
            "The kernel refused every BPF program.",
            next(iter(refused.values()), "There was no program to load."),
        )
    return tuple(accepted), refused
