# SPDX-License-Identifier: Apache-2.0
"""Every kind of host event has words for its values, whatever a recording claims they are."""

import pytest

from ipitrace.words.events import HOST_EVENTS, HostEvent, Kind

MOST = (1 << 64) - 1


def test_the_table_has_every_kind_once_in_order() -> None:
    assert [event.kind for event in HOST_EVENTS] == list(Kind)


@pytest.mark.parametrize("event", HOST_EVENTS, ids=lambda event: event.name)
def test_values_print(event: HostEvent) -> None:
    for detail in (None, 0, 1, 3, 0xFFFF, MOST):
        text = event.describe(MOST, 7, detail)
        assert "None" not in text
        assert "detail" not in text


def test_only_what_has_no_values_prints_none() -> None:
    silent = {event.name for event in HOST_EVENTS if not event.describe(1, 2, 3)}
    assert silent == {
        *("kvm_entry", "kvm_emulate_insn", "pi_wakeup_handler"),
        *("sysvec_kvm_posted_intr_wakeup_ipi", "smp_kvm_posted_intr_ipi"),
        "kvm_pv_tlb_flush",
    }


def test_words_of_some() -> None:
    words = {event.kind: event for event in HOST_EVENTS}
    assert words[Kind.KVM_MSR].describe(0xFB, 0x830, 3) == (
        "write of MSR 0x830, data 0xfb, which raises an exception"
    )
    assert words[Kind.KVM_APIC].describe(0, 0x300, 0) == "read of register 0x300, value 0x0"
    assert words[Kind.KVM_VCPU_WAKEUP].describe(5, 0, 1) == "after 5 ns of waiting"
    assert words[Kind.KVM_APICV_INHIBIT_CHANGED].describe(4, 2, 1) == "reason 2 set, inhibits 0x4"
    assert words[Kind.KVM_EOI].describe(0, 0, 0xFFFF) == "nothing in service"
    assert words[Kind.KVM_HV_SEND_IPI].describe(0x6, 0, 0xF0) == "vector 0xf0, processors 0x6"
    of_set = words[Kind.KVM_HV_SEND_IPI_EX]
    assert of_set.describe(1, 0, 0xF0) == "vector 0xf0, a sparse set, banks 0x1"
    assert of_set.describe(0, 1, 0xF1) == "vector 0xf1, all processors, banks 0x0"
    assert of_set.describe(0, 7, 0xF1) == "vector 0xf1, set of format 7, banks 0x0"
    assert words[Kind.VMX_DELIVER_INTERRUPT].describe(0, 0, None) == "vector not known"
