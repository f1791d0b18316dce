// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions of KVM for which there is no tracepoint; hooked if the kernel has them. User
 * space can have this file twice in the translation unit, with different hooks.
 */

#include <uapi/linux/ptrace.h>

/* An interrupt arrives in the context of any task. Only some interrupt a traced vCPU. */
RECORD_OR(pi_wakeup_handler, count_unattributed, 0, 0, 0)

RECORD_OR(sysvec_kvm_posted_intr_wakeup_ipi, count_unattributed, 0, 0, 0)

RECORD_OR(smp_kvm_posted_intr_ipi, count_unattributed, 0, 0, 0)

/* Other threads of the process (timers, devices) deliver interrupts to its vCPUs too. */
RECORD_OR(vmx_deliver_interrupt, count_elsewhere, 0, 0, FIELD_OR(vmx_deliver_interrupt, vector, 0))

RECORD_OR(vmx_deliver_posted_interrupt, count_elsewhere, 0, 0,
	  FIELD_OR(vmx_deliver_posted_interrupt, vector, 0))

/*
 * These functions are called for every exit of their kind and decide whether the
 * fastpath handles it. The return value shows this: EXIT_FASTPATH_NONE (0) means no.
 */
#define is_handled(fastpath) ((u32)(fastpath))

RECORD_IF(handle_fastpath_set_msr_irqoff, is_handled, 0, RETURNED(handle_fastpath_set_msr_irqoff),
	  0)

RECORD_IF(handle_fastpath_wrmsr, is_handled, 0, RETURNED(handle_fastpath_wrmsr), 0)

RECORD_IF(handle_fastpath_wrmsr_imm, is_handled, 0, RETURNED(handle_fastpath_wrmsr_imm), 0)
