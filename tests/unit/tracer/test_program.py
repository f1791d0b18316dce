# SPDX-License-Identifier: Apache-2.0
"""How events are hooked on different kernels, decided without one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ipitrace.base import resources
from ipitrace.tracer import counting
from ipitrace.tracer.btf import Arg, BtfFunction
from ipitrace.tracer.events import EVENT_BY_NAME, EVENTS, EventSpec
from ipitrace.tracer.formats import Column, parse_format
from ipitrace.tracer.program import (
    SOURCES,
    WATCH_SOURCES,
    HookPlan,
    KernelOffer,
    cflags,
    plan,
    source,
)
from ipitrace.words.events import Kind

TRACEFS = Path(__file__).parents[2] / "data" / "tracefs"
FIELDS_READ = re.compile(r"FIELD(?:_OR)?\((\w+), (\w+)")
TRACEPOINTS = [event for event in EVENTS if not event.symbol]


def args(prototype: str) -> tuple[Arg, ...]:
    return tuple(Arg(*part.split(":")) for part in prototype.split())


def unnamed(prototype: str) -> tuple[Arg, ...]:
    return tuple(Arg(None, arg.shape) for arg in args(prototype))


def planned(offer: KernelOffer, *tracepoints: str) -> HookPlan:
    return plan([EVENT_BY_NAME[name] for name in tracepoints], offer)


def flags(a_plan: HookPlan) -> list[str]:
    return cflags(a_plan, Path("/bpf"), slots_per_ring=64)


def kvm_exit_columns() -> dict[str, dict[str, Column]]:
    return {"kvm_exit": parse_format((TRACEFS / "6.18/kvm_exit").read_text())}


def test_the_table_has_every_kind_once() -> None:
    assert [event.kind for event in EVENTS] == list(Kind)


@pytest.mark.parametrize("spec", TRACEPOINTS, ids=lambda event: event.name)
def test_every_known_prototype_has_the_fields_that_are_read(spec: EventSpec) -> None:
    assert bool(spec.fields) <= bool(spec.prototypes)
    shapes = [tuple(arg.shape for arg in args(prototype)) for prototype in spec.prototypes]
    assert len(set(shapes)) == len(shapes), "types alone must tell the prototypes apart"
    if spec.kind in {Kind.KVM_EXIT, Kind.KVM_VMGEXIT_ENTER}:
        return  # the newest prototype lacks the reason: that is why it is classic
    for prototype in spec.prototypes:
        names = {arg.name for arg in args(prototype)}
        for field in spec.fields:
            assert names & set(field.spellings), (prototype, field.name)


def probes_in_c() -> dict[str, str]:
    """Each probe that writes a ring, by its event: what it is made of."""
    text = "\n".join((resources.bpf_dir() / name).read_text() for name in SOURCES)
    for name, body in re.findall(r"^#define (\w+)\(event\) (.*)$", text, re.MULTILINE):
        text = re.sub(rf"\b{name}\((\w+)\)", lambda m, b=body: re.sub(r"\bevent\b", m[1], b), text)
    recorders = re.findall(r"^RECORD\w*\((\w+),(.*?)\)\n(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    others = re.findall(r"^#ifdef HAVE_(\w+)\n(.*?)^}\n#endif", text, re.DOTALL | re.MULTILINE)
    assert len(recorders) + len(others) == len({name for name, _ in (*recorders, *others)})
    for name, body in others:
        assert f"ROW_{name}" in body
    return dict([*recorders, *others])


def test_every_probe_in_the_c_files_is_in_the_table_and_reads_what_it_says() -> None:
    probes = probes_in_c()
    assert probes.keys() == EVENT_BY_NAME.keys()
    watch = "".join((resources.bpf_dir() / name).read_text() for name in WATCH_SOURCES)
    counted = FIELDS_READ.findall(watch)
    for name, body in probes.items():
        read = {field for event, field in FIELDS_READ.findall(body)}
        read |= {field for event, field in counted if event == name}
        assert read == {field.name for field in EVENT_BY_NAME[name].fields}, name
        assert {event for event, _ in FIELDS_READ.findall(body)} <= {name}


def test_what_only_some_kernels_have_is_read_only_where_they_do() -> None:
    offer = KernelOffer(args={"kvm_exit": args("exit_reason:u32 vcpu:*kvm_vcpu isa:u32")})
    given = flags(planned(offer, "kvm_exit"))
    assert {"-DHAVE_kvm_exit", "-DHAVE_ARG_kvm_exit_isa"} <= set(given)
    assert "-DHAVE_ARG_kvm_exit_info1" not in given


def test_the_counting_programs_read_fields_that_the_table_has() -> None:
    text = "".join((resources.bpf_dir() / name).read_text() for name in WATCH_SOURCES)
    probes = re.findall(r"^PROBE\((\w+)\)", text, re.MULTILINE)
    assert set(probes) == {*counting.EVENTS, counting.ENDS_SENDS}
    for event, field in FIELDS_READ.findall(text):
        assert field in {f.name for f in EVENT_BY_NAME[event].fields}, event


def test_a_new_kernel_hooks_kvm_exit_by_its_format() -> None:
    offer = KernelOffer(
        args={"kvm_exit": args("vcpu:*kvm_vcpu isa:u32")}, columns=kvm_exit_columns()
    )
    a_plan = planned(offer, "kvm_exit")
    assert [probe.hook for probe in a_plan.probes] == ["classic"]
    assert {"-DHOOK_kvm_exit=CLASSIC", "-DARG_kvm_exit_info1=info1"} <= set(flags(a_plan))


def test_the_message_of_a_vmgexit_is_read_by_its_format() -> None:
    columns = {"kvm_vmgexit_enter": parse_format((TRACEFS / "6.18/kvm_vmgexit_enter").read_text())}
    offer = KernelOffer(args={"kvm_vmgexit_enter": args("vcpu_id:u32 ghcb:*ghcb")}, columns=columns)
    a_plan = planned(offer, "kvm_vmgexit_enter")
    assert [probe.hook for probe in a_plan.probes] == ["classic"]
    assert "-DARG_kvm_vmgexit_enter_exit_reason=exit_reason" in flags(a_plan)


def test_an_older_kernel_has_the_reason_in_the_raw_arguments() -> None:
    offer = KernelOffer(
        args={"kvm_exit": args("exit_reason:u32 vcpu:*kvm_vcpu isa:u32")},
        columns=kvm_exit_columns(),
    )
    a_plan = planned(offer, "kvm_exit")
    assert [probe.hook for probe in a_plan.probes] == ["raw"]
    given = flags(a_plan)
    assert {"-DARG_kvm_exit_exit_reason=0", "-DARG_kvm_exit_isa=2"} <= set(given)
    assert not any("info1" in flag for flag in given)


@pytest.mark.parametrize("spelling", ["vector", "irq"])
def test_both_spellings_of_the_injected_vector(spelling: str) -> None:
    offer = KernelOffer(args={"kvm_inj_virq": args(f"{spelling}:u32")})
    assert "-DARG_kvm_inj_virq_vector=0" in flags(planned(offer, "kvm_inj_virq"))


def test_types_name_the_arguments_where_btf_does_not() -> None:
    for prototype, position in (
        ("vector:u32 soft:bool reinjected:bool", 0),
        ("irq:u32", 0),
    ):
        offer = KernelOffer(args={"kvm_inj_virq": unnamed(prototype)})
        assert f"-DARG_kvm_inj_virq_vector={position}" in flags(planned(offer, "kvm_inj_virq"))
    moved = EVENT_BY_NAME["sched_switch"].prototypes[1]
    offer = KernelOffer(args={"sched_switch": unnamed(moved)}, task_pid_offset=1264)
    given = flags(planned(offer, "sched_switch"))
    assert {"-DARG_sched_switch_next=3", "-DTASK_PID_OFFSET=1264"} <= set(given)


def test_unknown_types_are_not_guessed() -> None:
    offer = KernelOffer(args={"kvm_inj_virq": (Arg(None, "u64"), Arg(None, "u32"))})
    a_plan = planned(offer, "kvm_inj_virq")
    assert a_plan.probes == ()
    assert "their types are not known" in a_plan.left_out["kvm_inj_virq"]


def test_sched_switch_without_the_task_layout_is_classic() -> None:
    offer = KernelOffer(
        args={"sched_switch": args(EVENT_BY_NAME["sched_switch"].prototypes[0])},
        columns={"sched_switch": parse_format((TRACEFS / "6.18/sched_switch").read_text())},
    )
    given = flags(planned(offer, "sched_switch"))
    assert {"-DHOOK_sched_switch=CLASSIC", "-DARG_sched_switch_next=next_pid"} <= set(given)
    assert not any("TASK_PID_OFFSET" in flag for flag in given)


def test_reasons_for_what_is_left_out() -> None:
    nothing = KernelOffer(no_args="the kernel has no BTF", no_columns="tracefs is not mounted")
    assert planned(nothing, "kvm_eoi").left_out == {
        "kvm_eoi": "raw: the kernel has no BTF; classic: tracefs is not mounted"
    }
    new = KernelOffer(
        args={"kvm_eoi": args("apic:*kvm_lapic irq_line:s32")}, columns={"kvm_eoi": {}}
    )
    assert planned(new, "kvm_eoi").left_out == {
        "kvm_eoi": "raw: its raw arguments lack vector; classic: its tracefs format lacks vector"
    }


FUNCTIONS = [event for event in EVENTS if event.symbol]


def test_functions_are_hooked_where_the_kernel_has_them() -> None:
    offer = KernelOffer(
        args={"vmx_deliver_interrupt": args("apic:*kvm_lapic mode:s32 trig:s32 vector:s32")},
        functions={
            "vmx_deliver_interrupt",
            "vmx_deliver_posted_interrupt",
            "handle_fastpath_wrmsr",
            "__sysvec_kvm_posted_intr_wakeup_ipi",
        },
        no_functions={"pi_wakeup_handler": "the kernel forbids probing it"},
    )
    a_plan = plan(FUNCTIONS, offer)
    assert {probe.event.name: probe.hook for probe in a_plan.probes} == {
        "vmx_deliver_interrupt": "kprobe",
        "vmx_deliver_posted_interrupt": "kprobe",
        "handle_fastpath_wrmsr": "kretprobe",
        "sysvec_kvm_posted_intr_wakeup_ipi": "kprobe",
    }
    assert a_plan.left_out["pi_wakeup_handler"] == "the kernel forbids probing it"
    assert a_plan.left_out["smp_kvm_posted_intr_ipi"] == "not a function of this kernel"
    # The fourth argument, counted from one; without BTF the vector is not guessed.
    vectors = [flag for flag in flags(a_plan) if "_vector=" in flag]
    assert vectors == ["-DARG_vmx_deliver_interrupt_vector=4"]


def functions_in_btf() -> KernelOffer:
    """One function in BTF for each kind of hook, one that only kallsyms has, one refused."""
    return KernelOffer(
        args={"vmx_deliver_interrupt": args("apic:*kvm_lapic mode:s32 trig:s32 vector:s32")},
        btf_functions={
            "vmx_deliver_interrupt": BtfFunction(7, "kvm_intel", 4),
            "handle_fastpath_wrmsr": BtfFunction(9, "", 1),
            "pi_wakeup_handler": BtfFunction(8, "kvm_intel", 0),
        },
        functions={"vmx_deliver_interrupt", "handle_fastpath_wrmsr", "handle_fastpath_wrmsr_imm"},
        no_functions={"pi_wakeup_handler": "several functions of this kernel have this name"},
    )


def test_functions_in_btf_are_hooked_by_fentry_and_fexit() -> None:
    a_plan = plan(FUNCTIONS, functions_in_btf())
    chosen = {probe.event.name: (probe.hook, probe.btf) for probe in a_plan.probes}
    assert chosen == {
        "vmx_deliver_interrupt": ("fentry", BtfFunction(7, "kvm_intel", 4)),
        "handle_fastpath_wrmsr": ("fexit", BtfFunction(9, "", 1)),
        "handle_fastpath_wrmsr_imm": ("kretprobe", None),
    }
    second = {probe.event.name: probe.second.hook for probe in a_plan.probes if probe.second}
    assert second == {"vmx_deliver_interrupt": "kprobe", "handle_fastpath_wrmsr": "kretprobe"}
    names = [name for p in a_plan.probes for name in (p.function, p.second and p.second.function)]
    assert names == [
        "fentry_vmx_deliver_interrupt",
        "probe_vmx_deliver_interrupt",
        "fexit_handle_fastpath_wrmsr",
        "probe_handle_fastpath_wrmsr",
        "probe_handle_fastpath_wrmsr_imm",
        None,
    ]
    assert a_plan.left_out["pi_wakeup_handler"].startswith("several functions")
    assert {
        "-DHOOK_vmx_deliver_interrupt=FENTRY",
        "-DARG_vmx_deliver_interrupt_vector=4",
        "-DHOOK_handle_fastpath_wrmsr=FEXIT",
        "-DN_ARGS_handle_fastpath_wrmsr=1",
        "-DHOOK_handle_fastpath_wrmsr_imm=KRETPROBE",
    } <= set(flags(a_plan))


def test_the_second_choices_are_in_the_same_translation_unit() -> None:
    text = source(plan(FUNCTIONS, functions_in_btf()), resources.bpf_dir())
    first, between = text.split('#line 1 "functions.bpf.c"\n')[1:]
    redefined = first[first.index("#undef") :].splitlines()
    assert redefined == [
        "#undef HOOK_vmx_deliver_interrupt",
        "#define HOOK_vmx_deliver_interrupt KPROBE",
        "#undef HOOK_handle_fastpath_wrmsr",
        "#define HOOK_handle_fastpath_wrmsr KRETPROBE",
        "#undef HAVE_handle_fastpath_wrmsr_imm",
    ]
    assert between == (resources.bpf_dir() / "functions.bpf.c").read_text()
    only_kprobes = KernelOffer(functions={"handle_fastpath_wrmsr"})
    text = source(plan(FUNCTIONS, only_kprobes), resources.bpf_dir())
    assert text.count('#line 1 "functions.bpf.c"') == 1


def test_only_interrupt_handlers_are_anyones_and_only_fastpaths_are_on_return() -> None:
    probes = probes_in_c()
    counted = {name for name, body in probes.items() if "count_unattributed" in body}
    assert counted == {event.name for event in EVENTS if event.any_context}
    returned = {name for name, body in probes.items() if f"RETURNED({name})" in body}
    assert returned == {event.name for event in EVENTS if event.on_return}


def test_rows_with_rings_come_first() -> None:
    offer = KernelOffer(args={"kvm_emulate_insn": (), "kvm_entry": ()})
    a_plan = planned(offer, "kvm_emulate_insn", "kvm_entry")
    assert [probe.event.name for probe in a_plan.probes] == ["kvm_entry", "kvm_emulate_insn"]
    assert a_plan.n_rings == 1
    assert {"-DN_ROWS=2", "-DN_RINGS=1", "-DROW_kvm_emulate_insn=1"} <= set(flags(a_plan))


# Where each kernel's kvm_exit has (exit_reason, isa, info1): they stayed put for all that was
# added behind them. Then kvm_entry's columns, and what kvm_inj_virq and kvm_apic look like.
EXIT_PLACES = {"exit_reason": (8, 4), "isa": (24, 4), "info1": (32, 8)}
OLD_EXIT = ["exit_reason", "guest_rip", "isa", "info1", "info2"]
NEW_EXIT = [*OLD_EXIT, "intr_info", "error_code", "vcpu_id"]
LAYOUTS: dict[str, tuple[list[str], list[str], str, int]] = {
    "4.18": (OLD_EXIT, ["vcpu_id"], "irq", 4),
    "4.18-el8": (NEW_EXIT, ["vcpu_id", "rip"], "irq", 4),
    "5.3": (OLD_EXIT, ["vcpu_id"], "irq", 4),
    "5.4": ([*OLD_EXIT, "vcpu_id"], ["vcpu_id"], "irq", 4),
    "5.10": (NEW_EXIT, ["vcpu_id", "rip"], "irq", 4),
    "5.16": (NEW_EXIT, ["vcpu_id", "rip"], "irq", 4),
    "6.1": (NEW_EXIT, ["vcpu_id", "rip"], "vector", 8),
    "6.12": (NEW_EXIT, ["vcpu_id", "rip", "immediate_exit"], "vector", 8),
    "6.14": (
        [*NEW_EXIT, "requests"],
        ["vcpu_id", "rip", "immediate_exit", "intr_info", "error_code"],
        "vector",
        8,
    ),
    "6.18": (
        [*NEW_EXIT, "requests"],
        ["vcpu_id", "rip", "immediate_exit", "intr_info", "error_code"],
        "vector",
        8,
    ),
}


def columns_of(kernel: str) -> dict[str, dict[str, Column]]:
    return {path.name: parse_format(path.read_text()) for path in (TRACEFS / kernel).iterdir()}


def own(columns: dict[str, Column]) -> list[str]:
    return [name for name in columns if not name.startswith("common_")]


def test_every_layout_is_here() -> None:
    assert {path.name for path in TRACEFS.iterdir() if path.is_dir()} == LAYOUTS.keys()


@pytest.mark.parametrize("kernel", LAYOUTS)
def test_the_classic_hooks_of_every_layout(kernel: str) -> None:
    exit_columns, entry_columns, injected, val_size = LAYOUTS[kernel]
    columns = columns_of(kernel)
    assert own(columns["kvm_exit"]) == exit_columns
    assert own(columns["kvm_entry"]) == entry_columns
    names = ["kvm_exit", "kvm_entry", "kvm_inj_virq", "kvm_apic"]
    a_plan = planned(KernelOffer(columns=columns), *names)
    assert a_plan.left_out == {}
    assert {probe.hook for probe in a_plan.probes} == {"classic"}
    places = {probe.event.name: probe.places for probe in a_plan.probes}
    bound = {
        name: (place.offset, place.size)
        for name, place in places["kvm_exit"].items()
        if isinstance(place, Column)
    }
    assert bound == EXIT_PLACES
    assert places["kvm_entry"] == {}
    assert places["kvm_inj_virq"] == {"vector": Column(injected, 8, 4, signed=False)}
    assert places["kvm_apic"]["val"] == Column("val", 16, val_size, signed=False)
    given = set(flags(a_plan))
    assert {
        "-DARG_kvm_exit_exit_reason=exit_reason",
        "-DARG_kvm_exit_isa=isa",
        "-DARG_kvm_exit_info1=info1",
        f"-DARG_kvm_inj_virq_vector={injected}",
    } <= given


def test_a_kvm_exit_that_does_not_say_whose_reasons_it_has() -> None:
    columns = columns_of("6.18")
    del columns["kvm_exit"]["isa"]
    for isa in (0, 1, 2):
        a_plan = planned(KernelOffer(columns=columns, host_isa=isa), "kvm_exit")
        assert [probe.hook for probe in a_plan.probes] == ["classic"]
        given = flags(a_plan)
        assert f"-DHOST_ISA={isa}" in given
        assert not any("ARG_kvm_exit_isa" in flag for flag in given)


FORMATS = sorted(TRACEFS.glob("*/*"))


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_record_in_c_lies_as_the_format_says(path: Path, tmp_path: Path) -> None:
    columns = parse_format(path.read_text())
    name = path.name
    a_plan = planned(KernelOffer(columns={name: columns}), name)
    assert [probe.hook for probe in a_plan.probes] == ["classic"], a_plan.left_out
    places = [place for place in a_plan.probes[0].places.values() if isinstance(place, Column)]
    assert len(places) == len(EVENT_BY_NAME[name].fields)
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    struct = source(a_plan, resources.bpf_dir()).split("#line")[0]
    checks = "".join(
        f'_Static_assert(offsetof(struct {name}_record, {place.name}) == {place.offset}, "");'
        f'_Static_assert(sizeof(((struct {name}_record *)0)->{place.name}) == {place.size}, "");\n'
        for place in places
    )
    types = "".join(
        f"typedef {sign}int{bits}_t {short}{bits};"
        for sign, short in (("", "s"), ("u", "u"))
        for bits in (8, 16, 32, 64)
    )
    code = tmp_path / "record.c"
    code.write_text(f"#include <stddef.h>\n#include <stdint.h>\n{types}\n{struct}\n{checks}")
    subprocess.run([compiler, "-fsyntax-only", code], check=True)
