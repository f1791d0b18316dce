// SPDX-License-Identifier: GPL-2.0-only
/* Exits and entries of the guest, what KVM emulates for it, and the TLB flushes before an entry. */

#define NO_REASON (~0u)

RECORD(kvm_exit, FIELD_OR(kvm_exit, info1, 0), FIELD_OR(kvm_exit, exit_reason, NO_REASON),
       PICK(HAVE_ARG_kvm_exit_exit_reason, FIELD_OR(kvm_exit, isa, HOST_ISA), 0))

RECORD(kvm_entry, 0, 0, 0)

/* The exit itself shows only that there is a message of the guest; this is the message. */
RECORD(kvm_vmgexit_enter, FIELD(kvm_vmgexit_enter, info1), FIELD(kvm_vmgexit_enter, exit_reason), 0)

RECORD_IF(kvm_msr, is_icr_msr, FIELD(kvm_msr, data), FIELD(kvm_msr, ecx),
	  !!FIELD(kvm_msr, write) | !!FIELD(kvm_msr, exception) << 1)

static __always_inline bool is_send_ipi(u64 nr)
{
	return nr == KVM_HC_SEND_IPI;
}

RECORD(kvm_xen_hypercall, FIELD(kvm_xen_hypercall, a0), FIELD(kvm_xen_hypercall, nr), 0)

RECORD_IF(kvm_hypercall, is_send_ipi, FIELD(kvm_hypercall, a0), FIELD(kvm_hypercall, nr), 0)

RECORD(kvm_ple_window_update, FIELD(kvm_ple_window_update, old), FIELD(kvm_ple_window_update, new),
       0)

#ifdef HAVE_kvm_emulate_insn
PROBE(kvm_emulate_insn)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		count(vcpu, ROW_kvm_emulate_insn);
	return 0;
}
#endif

/*
 * record_steal_time() in arch/x86/kvm/x86.c: each time that a vCPU's thread gets a CPU, if the
 * guest may ask for flushes by its steal time. The guest's kernel asks instead of sending an IPI
 * to a vCPU that is preempted (kvm_flush_tlb_multi() in arch/x86/kernel/kvm.c).
 */
#ifdef HAVE_kvm_pv_tlb_flush
PROBE(kvm_pv_tlb_flush)
{
	int vcpu;

	if (!FIELD(kvm_pv_tlb_flush, need_flush_tlb))
		return 0;
	vcpu = this_vcpu();
	if (vcpu >= 0)
		count(vcpu, ROW_kvm_pv_tlb_flush);
	return 0;
}
#endif
