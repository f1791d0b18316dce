# SPDX-License-Identifier: Apache-2.0
"""Choose a hook for each event on this kernel, and generate the source of the program.

This module has no side effects: the kernel's features are its input, and source text and flags
are its output. A raw tracepoint is used if its arguments suffice: it costs a third of a classic
one, and does not share the classic ones' per-CPU recursion guard, which drops nested events.
Functions are probed if the kernel has them and allows it: by fentry and fexit where BTF has the
function, because they weigh less than a kprobe and a kretprobe. Whether a kernel accepts them
shows when they are loaded and attached, so a kprobe or kretprobe is kept as the second choice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ipitrace.tracer.btf import Arg, BtfFunction
from ipitrace.tracer.events import EventSpec
from ipitrace.tracer.formats import Column

Hook = Literal["raw", "classic", "kprobe", "kretprobe", "fentry", "fexit"]

# Joined in this order they are one translation unit: bcc rewrites map accesses only in the
# main file, so the files cannot be included.
SOURCES: Final = (
    "ring.bpf.c",
    "exits.bpf.c",
    "apic.bpf.c",
    "accel.bpf.c",
    "irq.bpf.c",
    "sched.bpf.c",
    "functions.bpf.c",
)
FUNCTION_SOURCES: Final = ("functions.bpf.c",)
WATCH_SOURCES: Final = ("watch.bpf.c",)


@dataclass(frozen=True)
class KernelOffer:
    """The features of a kernel: arguments from BTF, columns from tracefs, functions to probe.

    `args` has the arguments of raw tracepoints and functions by event name, `btf_functions` the
    functions that BTF has exactly once, by event name. `no_args` and
    `no_columns` have the reason if nothing could be read, `no_functions` the reason by symbol.
    `host_isa` is the kind of this CPU's exits (1 VMX, 2 SVM, 0 unknown), for kernels whose
    kvm_exit does not report it. `can_nest`: an interrupt can run a raw tracepoint's program on a
    CPU that is already running it.
    """

    args: Mapping[str, tuple[Arg, ...]] = field(default_factory=dict)
    btf_functions: Mapping[str, BtfFunction] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, Column]] = field(default_factory=dict)
    task_pid_offset: int | None = None
    no_args: str | None = None
    no_columns: str | None = None
    functions: Collection[str] = ()
    no_functions: Mapping[str, str] = field(default_factory=dict)
    host_isa: int = 0
    can_nest: bool = False


@dataclass(frozen=True)
class Probe:
    """One event with its hook. `places` maps ipitrace's field names to the places of the values.

    A place is a raw argument's position from 0, a column of the classic tracepoint's record, or
    a function argument's position from 1. `btf` is the function of a fentry or fexit hook, and
    `second` the probe to use if the kernel refuses this one.
    """

    event: EventSpec
    hook: Hook
    places: Mapping[str, int | Column]
    btf: BtfFunction | None = None
    second: "Probe | None" = None

    @property
    def function(self) -> str:
        """The BPF program's name."""
        return f"{'probe' if self.btf is None else self.hook}_{self.event.name}"

    @property
    def target(self) -> str:
        """What the program is attached to: a tracepoint or a function."""
        event = self.event
        return event.symbol or (
            f"{event.category}:{event.name}" if self.hook == "classic" else event.name
        )


@dataclass(frozen=True)
class HookPlan:
    """The probes in row order (those with a ring first), and the reasons for omitted events."""

    probes: tuple[Probe, ...]
    left_out: Mapping[str, str]
    task_pid_offset: int | None
    host_isa: int
    can_nest: bool = False

    @property
    def n_rings(self) -> int:
        """The number of rows that have a ring."""
        return sum(probe.event.recorded for probe in self.probes)


def _named(args: tuple[Arg, ...], prototypes: Sequence[str]) -> tuple[Arg, ...] | None:
    """The arguments with names: their own, or those of the known prototype of the same types."""
    if all(arg.name for arg in args):
        return args
    shapes = [arg.shape for arg in args]
    for prototype in prototypes:
        known = [Arg(*part.split(":")) for part in prototype.split()]
        if [arg.shape for arg in known] == shapes:
            return tuple(known)
    return None


def _raw(event: EventSpec, offer: KernelOffer) -> Probe | str:
    """The event as a raw tracepoint, or why this is not possible."""
    args = offer.args.get(event.name)
    if args is None:
        return offer.no_args or "not in the kernel's BTF"
    named = _named(args, event.prototypes) if event.fields else ()
    if named is None:
        return "the kernel's BTF does not name its arguments, and their types are not known"
    positions = {arg.name: position for position, arg in enumerate(named)}
    places: dict[str, int | Column] = {}
    for wanted in event.fields:
        found = next((name for name in wanted.spellings if name in positions), None)
        if found is not None:
            places[wanted.name] = positions[found]
            if named[positions[found]].shape == "*task_struct" and offer.task_pid_offset is None:
                return "the kernel's BTF lacks task_struct.pid"
        elif not wanted.optional:
            return f"its raw arguments lack {wanted.name}"
    return Probe(event, "raw", places)


def _classic(event: EventSpec, offer: KernelOffer) -> Probe | str:
    """The event as a classic tracepoint, or why this is not possible."""
    columns = offer.columns.get(event.name)
    if columns is None:
        return offer.no_columns or "not in tracefs"
    places: dict[str, int | Column] = {}
    for wanted in event.fields:
        found = next((name for name in wanted.column_spellings if name in columns), None)
        if found is not None and columns[found].c_type is not None:
            places[wanted.name] = columns[found]
        elif not wanted.optional:
            return f"its tracefs format lacks {wanted.name}"
    return Probe(event, "classic", places)


def _function(event: EventSpec, offer: KernelOffer) -> Probe | str:
    """The event on a function, or why this is not possible.

    A fentry or fexit is chosen only if a kprobe would be possible, too: kallsyms tells whether the
    name is unique, and the blacklist which functions must not be probed.
    """
    if event.symbol not in offer.functions:
        return offer.no_functions.get(event.symbol, "not a function of this kernel")
    names = [arg.name for arg in offer.args.get(event.name, ())]
    places: dict[str, int | Column] = {}
    for wanted in event.fields:
        found = next((name for name in wanted.spellings if name in names), None)
        if found is not None:
            places[wanted.name] = names.index(found) + 1
        elif not wanted.optional:
            return f"the kernel's BTF does not name the argument {wanted.name} of {event.symbol}"
    probe = Probe(event, "kretprobe" if event.on_return else "kprobe", places)
    btf = offer.btf_functions.get(event.name)
    if btf is None:
        return probe
    return Probe(event, "fexit" if event.on_return else "fentry", places, btf, probe)


def _hooked(event: EventSpec, offer: KernelOffer) -> Probe | str:
    """The event with the best possible hook, or the reason why there is none."""
    if event.symbol:
        return _function(event, offer)
    raw = _raw(event, offer)
    if isinstance(raw, Probe):
        return raw
    classic = _classic(event, offer)
    return classic if isinstance(classic, Probe) else f"raw: {raw}; classic: {classic}"


def plan(events: Collection[EventSpec], offer: KernelOffer) -> HookPlan:
    """HookPlan a hook for every event of `events` that this kernel supports."""
    probes: list[Probe] = []
    left_out: dict[str, str] = {}
    for event in events:
        hooked = _hooked(event, offer)
        if isinstance(hooked, Probe):
            probes.append(hooked)
        else:
            left_out[event.name] = hooked
    probes.sort(key=lambda probe: not probe.event.recorded)
    return HookPlan(tuple(probes), left_out, offer.task_pid_offset, offer.host_isa, offer.can_nest)


def _record_struct(probe: Probe) -> str:
    """The classic tracepoint's record as a C struct: the wanted columns and padding."""
    lines = [f"struct {probe.event.name}_record {{"]
    end = 0
    columns = {place for place in probe.places.values() if isinstance(place, Column)}
    for column in sorted(columns, key=lambda column: column.offset):
        if column.offset > end:
            lines.append(f"\tchar pad_{end}[{column.offset - end}];")
        lines.append(f"\t{column.c_type} {column.name};")
        end = column.offset + column.size
    return "\n".join([*lines, "};", ""])


def source(planned: HookPlan, directory: Path, files: Sequence[str] = SOURCES) -> str:
    """The complete translation unit: this kernel's records, then the `files` of bpf/.

    The probes on functions follow once more for those events that have a second choice.
    """
    parts = [_record_struct(probe) for probe in planned.probes if probe.hook == "classic"]
    for name in files:
        parts += _file(directory, name)
        if name in FUNCTION_SOURCES and any(probe.second for probe in planned.probes):
            parts += [_second_choices(planned), *_file(directory, name)]
    return "".join(parts)


def _file(directory: Path, name: str) -> list[str]:
    return [f'#line 1 "{name}"\n', (directory / name).read_text()]


def _second_choices(planned: HookPlan) -> str:
    """Lines that set the second hooks of functions, and drop the functions that have none."""
    lines = ["\n"]
    for probe in planned.probes:
        if probe.event.symbol:
            flag = f"HOOK_{probe.event.name}" if probe.second else f"HAVE_{probe.event.name}"
            lines.append(f"#undef {flag}\n")
        if probe.second:
            lines.append(f"#define HOOK_{probe.event.name} {probe.second.hook.upper()}\n")
    return "".join(lines)


def cflags(planned: HookPlan, directory: Path, *, slots_per_ring: int) -> list[str]:
    """The flags that configure the translation unit for this kernel."""
    flags = [
        f"-I{directory}",
        f"-DN_ROWS={len(planned.probes)}",
        f"-DN_RINGS={planned.n_rings}",
        f"-DN_SLOTS={slots_per_ring}",
        *(f"-DROW_{probe.event.name}={row}" for row, probe in enumerate(planned.probes)),
    ]
    if planned.can_nest:
        flags.append("-DNEST_GUARD")
    return flags + hook_flags(planned)


def watch_cflags(
    planned: HookPlan, directory: Path, *, n_cells: int, counts_strangers: bool
) -> list[str]:
    """The flags that configure the programs that only count."""
    flags = [f"-I{directory}", f"-DN_CELLS={n_cells}"]
    if counts_strangers:
        flags.append("-DSTRANGERS")
    return flags + hook_flags(planned)


def hook_flags(planned: HookPlan) -> list[str]:
    """The hook of each event and the places of its fields, as bpf/probe.h expects them."""
    flags = [f"-DHOST_ISA={planned.host_isa}"]
    for probe in planned.probes:
        name = probe.event.name
        flags += [f"-DHAVE_{name}", f"-DHOOK_{name}={probe.hook.upper()}"]
        if probe.btf is not None:
            flags.append(f"-DN_ARGS_{name}={probe.btf.n_args}")
        for wanted, place in probe.places.items():
            spelt = place.name if isinstance(place, Column) else place
            flags += [f"-DHAVE_ARG_{name}_{wanted}", f"-DARG_{name}_{wanted}={spelt}"]
        if name == "sched_switch" and probe.hook == "raw":
            flags.append(f"-DTASK_PID_OFFSET={planned.task_pid_offset}")
    return flags
