// SPDX-License-Identifier: GPL-2.0-only
/* Functions of KVM that tell what no tracepoint does; hooked where the kernel has them. */

#include <uapi/linux/ptrace.h>

/* Interrupts come in anyone's context, so only some of them interrupt a vCPU of ours. */
#ifdef HAVE_pi_wakeup_handler
PROBE(pi_wakeup_handler)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_pi_wakeup_handler, 0, 0, 0);
	else
		count_unattributed(ROW_pi_wakeup_handler);
	return 0;
}
#endif

#ifdef HAVE_sysvec_kvm_posted_intr_wakeup_ipi
PROBE(sysvec_kvm_posted_intr_wakeup_ipi)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_sysvec_kvm_posted_intr_wakeup_ipi, 0, 0, 0);
	else
		count_unattributed(ROW_sysvec_kvm_posted_intr_wakeup_ipi);
	return 0;
}
#endif

#ifdef HAVE_smp_kvm_posted_intr_ipi
PROBE(smp_kvm_posted_intr_ipi)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_smp_kvm_posted_intr_ipi, 0, 0, 0);
	else
		count_unattributed(ROW_smp_kvm_posted_intr_ipi);
	return 0;
}
#endif

/* Other threads of the process (timers, devices) deliver interrupts to its vCPUs too. */
#ifdef HAVE_vmx_deliver_interrupt
PROBE(vmx_deliver_interrupt)
{
	int vcpu = this_vcpu();
	u16 vector = 0;

#ifdef ARG_vmx_deliver_interrupt_vector
	vector = FIELD(vmx_deliver_interrupt, vector);
#endif
	if (vcpu >= 0)
		record(vcpu, ROW_vmx_deliver_interrupt, 0, 0, vector);
	else if (in_our_process())
		count_elsewhere(ROW_vmx_deliver_interrupt);
	return 0;
}
#endif

#ifdef HAVE_vmx_deliver_posted_interrupt
PROBE(vmx_deliver_posted_interrupt)
{
	int vcpu = this_vcpu();
	u16 vector = 0;

#ifdef ARG_vmx_deliver_posted_interrupt_vector
	vector = FIELD(vmx_deliver_posted_interrupt, vector);
#endif
	if (vcpu >= 0)
		record(vcpu, ROW_vmx_deliver_posted_interrupt, 0, 0, vector);
	else if (in_our_process())
		count_elsewhere(ROW_vmx_deliver_posted_interrupt);
	return 0;
}
#endif

/*
 * These are called for every exit of their kind and decide whether the fastpath
 * will do: what they return is the evidence, EXIT_FASTPATH_NONE (0) means no.
 */
#ifdef HAVE_handle_fastpath_set_msr_irqoff
PROBE(handle_fastpath_set_msr_irqoff)
{
	u32 taken = PT_REGS_RC(ctx);
	int vcpu = this_vcpu();

	if (vcpu >= 0 && taken)
		record(vcpu, ROW_handle_fastpath_set_msr_irqoff, 0, taken, 0);
	return 0;
}
#endif

#ifdef HAVE_handle_fastpath_wrmsr
PROBE(handle_fastpath_wrmsr)
{
	u32 taken = PT_REGS_RC(ctx);
	int vcpu = this_vcpu();

	if (vcpu >= 0 && taken)
		record(vcpu, ROW_handle_fastpath_wrmsr, 0, taken, 0);
	return 0;
}
#endif

#ifdef HAVE_handle_fastpath_wrmsr_imm
PROBE(handle_fastpath_wrmsr_imm)
{
	u32 taken = PT_REGS_RC(ctx);
	int vcpu = this_vcpu();

	if (vcpu >= 0 && taken)
		record(vcpu, ROW_handle_fastpath_wrmsr_imm, 0, taken, 0);
	return 0;
}
#endif
