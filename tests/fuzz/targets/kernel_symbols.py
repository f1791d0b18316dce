# SPDX-License-Identifier: Apache-2.0
"""/proc/kallsyms and the kprobe blacklist, with \\0 between."""

from ipitrace.tracer.kernel import function_offer, host_isa

from ..files import tree

_SYMBOLS = ("kvm_apic_send_ipi", "f", "vmx_deliver_posted_interrupt")


def fuzz(data: bytes) -> None:
    symbols, _, blacklist = data.partition(b"\0")
    files = tree(
        {
            "/sys/bus/event_source/devices/kprobe/type": b"6",
            "/proc/kallsyms": symbols,
            "/sys/kernel/debug/kprobes/blacklist": blacklist,
            "/proc/cpuinfo": blacklist,
        }
    )
    found, why = function_offer(_SYMBOLS, files)
    assert found.isdisjoint(why)
    assert found | why.keys() == set(_SYMBOLS)
    host_isa(files)
