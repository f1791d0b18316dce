# SPDX-License-Identifier: Apache-2.0
"""A kernel that offers little, laid out as directories."""

import shutil
from pathlib import Path

import pytest

from ipitrace.host.files import HostFiles
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.tracer.kernel import classic_columns, function_offer, host_isa, raw_offer
from ipitrace.tracer.program import plan

TRACEFS = Path(__file__).parents[2] / "data" / "tracefs"
WANTED = [EVENT_BY_NAME[name] for name in ("kvm_exit", "kvm_entry")]


def test_no_btf_at_all(tmp_path: Path) -> None:
    offer = raw_offer(WANTED, tmp_path)
    assert offer.no_args == "the kernel has no BTF (No such file or directory)"
    assert set(plan(WANTED, offer).left_out) == {"kvm_exit", "kvm_entry"}


def test_unreadable_btf(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(60))
    offer = raw_offer(WANTED, tmp_path)
    assert offer.no_args is not None
    assert "not valid" in offer.no_args


def test_formats_of_the_events_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "events/kvm/kvm_exit").mkdir(parents=True)
    shutil.copy(TRACEFS / "6.18/kvm_exit", tmp_path / "events/kvm/kvm_exit/format")
    assert classic_columns(WANTED, tmp_path).keys() == {"kvm_exit"}


KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff8130a120 T pi_wakeup_handler\t[kvm_intel]
0000000000000000 t vmx_deliver_posted_interrupt.isra.0\t[kvm_intel]
0000000000000000 t twice
0000000000000000 t twice\t[kvm]
ffffffff81001000 T __sysvec_kvm_posted_intr_wakeup_ipi
ffffffff81002000 d handle_fastpath_wrmsr
ffffffff81003000 T sysvec_kvm_posted_intr_ipi
"""
SYMBOLS = [
    "pi_wakeup_handler",
    "vmx_deliver_posted_interrupt",
    "twice",
    "__sysvec_kvm_posted_intr_wakeup_ipi",
    "handle_fastpath_wrmsr",
    "sysvec_kvm_posted_intr_ipi",
    "stext",
]


def tree(root: Path, texts: dict[str, str]) -> HostFiles:
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return HostFiles(root)


def test_functions_that_can_be_probed(tmp_path: Path) -> None:
    files = tree(
        tmp_path,
        {
            "sys/bus/event_source/devices/kprobe/type": "8\n",
            "proc/kallsyms": KALLSYMS,
            "sys/kernel/debug/kprobes/blacklist": (
                "0xffffffff81003000-0xffffffff81003080\tsysvec_kvm_posted_intr_ipi\n"
            ),
        },
    )
    functions, why = function_offer(SYMBOLS, files)
    assert functions == {"pi_wakeup_handler", "__sysvec_kvm_posted_intr_wakeup_ipi"}
    absent = "not a function of this kernel (absent, inlined or renamed)"
    assert why == {
        "vmx_deliver_posted_interrupt": absent,
        "twice": "several functions of this kernel have this name",
        "handle_fastpath_wrmsr": absent,
        "sysvec_kvm_posted_intr_ipi": "the kernel forbids probing it",
        "stext": absent,
    }


def test_without_kprobes_or_symbols(tmp_path: Path) -> None:
    files = tree(tmp_path, {"proc/kallsyms": KALLSYMS})
    none, why = function_offer(SYMBOLS, files)
    assert none == frozenset()
    assert why == dict.fromkeys(SYMBOLS, "the kernel was built without kprobes")
    files = tree(tmp_path / "b", {"sys/bus/event_source/devices/kprobe/type": "8\n"})
    none, why = function_offer(SYMBOLS, files)
    assert none == frozenset()
    assert set(why.values()) == {"/proc/kallsyms cannot be read"}


@pytest.mark.parametrize(
    ("cpuinfo", "isa"),
    [
        ("processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: vnmi\n", 1),
        ("processor\t: 0\nflags\t\t: fpu svm\n", 2),
        ("processor\t: 0\nflags\t\t: fpu svm_lock\nvmx flags\t: vmx\n", 0),
        ("", 0),
    ],
)
def test_the_isa_of_the_cpu(cpuinfo: str, isa: int, tmp_path: Path) -> None:
    assert host_isa(tree(tmp_path, {"proc/cpuinfo": cpuinfo})) == isa
