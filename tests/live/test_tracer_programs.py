# SPDX-License-Identifier: Apache-2.0
"""Programs for every kernel layout compile and load here, or are refused in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_state import open_descriptors

from ipitrace.base import resources
from ipitrace.base.errors import HostError, UsageError
from ipitrace.tracer import Tracer, kernel
from ipitrace.tracer.btf import Arg, BtfFunction
from ipitrace.tracer.compiler import compile_programs
from ipitrace.tracer.events import EVENT_BY_NAME, EVENTS
from ipitrace.tracer.formats import parse_format
from ipitrace.tracer.loading import load_programs
from ipitrace.tracer.program import HookPlan, KernelOffer, cflags, plan, source
from ipitrace.tracer.tracefs import MOUNT_POINTS, find_tracefs

pytestmark = pytest.mark.live("root", "bpf")

TRACEFS = Path(__file__).parents[1] / "data" / "tracefs"


def compile_and_load(a_plan: HookPlan) -> None:
    """Have bcc compile the program and the verifier accept it; nothing is attached."""
    directory = resources.bpf_dir()
    flags = cflags(a_plan, directory, slots_per_ring=64)
    bpf = compile_programs(source(a_plan, directory), flags, directory)
    try:
        accepted, refused = load_programs(bpf, a_plan)
        assert refused == {}
        assert accepted == a_plan.probes
    finally:
        bpf.close()


LAYOUTS = sorted(path for path in TRACEFS.iterdir() if path.is_dir())


@pytest.mark.parametrize("directory", LAYOUTS, ids=lambda path: path.name)
def test_the_program_of_every_layout_compiles_and_loads(directory: Path) -> None:
    columns = {path.name: parse_format(path.read_text()) for path in directory.iterdir()}
    a_plan = plan([EVENT_BY_NAME[name] for name in columns], KernelOffer(columns=columns))
    assert a_plan.left_out == {}
    assert {probe.hook for probe in a_plan.probes} == {"classic"}
    compile_and_load(a_plan)


def test_a_program_without_isa_or_info1_compiles_and_loads() -> None:
    columns = parse_format((TRACEFS / "6.18/kvm_exit").read_text())
    del columns["isa"], columns["info1"]
    a_plan = plan(
        [EVENT_BY_NAME["kvm_exit"]], KernelOffer(columns={"kvm_exit": columns}, host_isa=2)
    )
    assert [probe.hook for probe in a_plan.probes] == ["classic"]
    compile_and_load(a_plan)


@pytest.mark.parametrize("btf", [True, False])
def test_the_program_of_every_function_compiles_and_loads(btf: bool) -> None:  # noqa: FBT001
    functions = [event for event in EVENTS if event.symbol]
    args = {
        "vmx_deliver_interrupt": tuple(Arg(n, "s32") for n in ("apic", "dm", "tm", "vector")),
        "vmx_deliver_posted_interrupt": (Arg("vcpu", "*kvm_vcpu"), Arg("vector", "s32")),
    }
    offer = KernelOffer(
        args=args if btf else {}, functions=frozenset(event.symbol for event in functions)
    )
    a_plan = plan(functions, offer)
    assert a_plan.left_out == {}
    compile_and_load(a_plan)


@pytest.mark.parametrize(
    ("type_id", "module"),
    [(1 << 30, ""), (1, "no_such_module")],
)
def test_a_kprobe_replaces_a_fentry_that_the_kernel_refuses(type_id: int, module: str) -> None:
    """No BTF has the function under this number."""
    functions = [event for event in EVENTS if event.symbol]
    vector = tuple(Arg(n, "s32") for n in ("apic", "dm", "tm", "vector"))
    offer = KernelOffer(
        args={"vmx_deliver_interrupt": vector},
        btf_functions={event.name: BtfFunction(type_id, module, 4) for event in functions},
        functions=frozenset(event.symbol for event in functions),
    )
    a_plan = plan(functions, offer)
    assert {probe.hook for probe in a_plan.probes} == {"fentry", "fexit"}
    directory = resources.bpf_dir()
    flags = cflags(a_plan, directory, slots_per_ring=64)
    bpf = compile_programs(source(a_plan, directory), flags, directory)
    try:
        accepted, refused = load_programs(bpf, a_plan)
    finally:
        bpf.close()
    assert refused == {}
    assert accepted == tuple(probe.second for probe in a_plan.probes)


def test_an_event_that_is_only_counted_can_be_watched_alone() -> None:
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["kvm_emulate_insn"]) as tracer:
        tracer.attach()
        tracer.drain()
        assert len(tracer.take()) == 0
        assert tracer.losses().ring_overruns == {}


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="kvm_ext") as raised:
        Tracer.load(pid=1, n_vcpus=1, only=["kvm_ext"])
    assert "kvm_exit" in raised.value.hint
    with pytest.raises(ValueError, match="power of two"):
        Tracer.load(pid=1, n_vcpus=1, slots_per_ring=1000)


def test_a_program_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/usr/src/mine")
    before = open_descriptors()
    with pytest.raises(HostError, match="do not compile") as raised:
        compile_programs("int broken(void) { return absent; }\n", [], resources.bpf_dir())
    assert "undeclared identifier 'absent'" in raised.value.hint
    assert os.environ["BCC_KERNEL_SOURCE"] == "/usr/src/mine"
    assert open_descriptors() == before


def test_a_program_the_verifier_refuses() -> None:
    text = "int probe_kvm_eoi(struct bpf_raw_tracepoint_args *ctx) { return ctx->args[99]; }\n"
    offer = KernelOffer(args={"kvm_eoi": (Arg("vector", "s32"),)})
    bpf = compile_programs(text, [], resources.bpf_dir())
    try:
        with pytest.raises(HostError, match="refused every BPF program") as raised:
            load_programs(bpf, plan([EVENT_BY_NAME["kvm_eoi"]], offer))
        assert "invalid" in raised.value.hint
    finally:
        bpf.close()


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(HostError, match="refused to create the maps"):
        Tracer.load(pid=1, n_vcpus=1000, slots_per_ring=1 << 24, only=["kvm_eoi"])


def test_this_kernels_btf() -> None:
    offer = kernel.raw_offer(EVENTS)
    assert offer.no_args is None
    assert "*task_struct" in [arg.shape for arg in offer.args["sched_switch"]]
    assert offer.task_pid_offset is not None
    assert offer.task_pid_offset % 4 == 0


PRIVATE_MOUNT = """
import json, os
from pathlib import Path
from ipitrace.tracer.tracefs import ensure_tracefs
def has_tracefs(pid):
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return "tracefs" in [line.split(" - ")[1].split()[0] for line in lines]
path, why = ensure_tracefs()
events = (Path(path) / "events/sched").is_dir()
print(json.dumps([str(path), why, events, has_tracefs("self"), has_tracefs(os.getppid())]))
"""


def test_tracefs_is_mounted_for_the_process_alone() -> None:
    # A stand-in for a host: a namespace without tracefs whose mounts would spread.
    host = (
        "umount -l /sys/kernel/tracing 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null;"
        ' mount --make-rshared / && "$0" -c "$1"; exit $?'
    )
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-c", host, sys.executable, PRIVATE_MOUNT],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(answer) == [str(MOUNT_POINTS[0]), None, True, True, False]


def test_without_tracefs_raw_tracepoints_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "ipitrace.tracer.attaching.ensure_tracefs", lambda: (None, "tracefs is not mounted")
    )
    with Tracer.load(pid=1, n_vcpus=1, only=["sched_switch", "kvm_exit"]) as tracer:
        assert "sched_switch" in tracer.hooks
        if "kvm_exit" not in tracer.hooks:
            assert "tracefs is not mounted" in tracer.left_out["kvm_exit"]
    assert find_tracefs((tmp_path,)) is None
