// SPDX-License-Identifier: GPL-2.0-only
/* APICv and AVIC, and changes of a guest's interrupts or clock from outside a vCPU. */

#define ICR(event) ((u64)FIELD(event, icrh) << 32 | (u32)FIELD(event, icrl))

RECORD(kvm_avic_incomplete_ipi, ICR(kvm_avic_incomplete_ipi), FIELD(kvm_avic_incomplete_ipi, id),
       FIELD(kvm_avic_incomplete_ipi, index))

RECORD_IF(kvm_avic_unaccelerated_access, is_icr_register, 0,
	  FIELD(kvm_avic_unaccelerated_access, offset),
	  !!FIELD(kvm_avic_unaccelerated_access, rw) | !!FIELD(kvm_avic_unaccelerated_access, ft)
							       << 1)

RECORD(kvm_avic_kick_vcpu_slowpath, ICR(kvm_avic_kick_vcpu_slowpath),
       FIELD(kvm_avic_kick_vcpu_slowpath, index), 0)

RECORD(kvm_avic_doorbell, 0, FIELD(kvm_avic_doorbell, apicid), FIELD(kvm_avic_doorbell, vcpuid))

/*
 * The next three events also fire in threads that are not vCPU threads. There
 * they are counted atomically without a record: every ring keeps one writer.
 */
RECORD_OR(kvm_apicv_inhibit_changed, count_elsewhere, FIELD(kvm_apicv_inhibit_changed, inhibits),
	  FIELD(kvm_apicv_inhibit_changed, reason), !!FIELD(kvm_apicv_inhibit_changed, set))

RECORD_OR(kvm_write_tsc_offset, count_elsewhere, FIELD(kvm_write_tsc_offset, next_tsc_offset),
	  FIELD(kvm_write_tsc_offset, vcpu_id), 0)

RECORD_OR(kvm_pi_irte_update, count_elsewhere, FIELD(kvm_pi_irte_update, gsi),
	  FIELD(kvm_pi_irte_update, host_irq), FIELD(kvm_pi_irte_update, gvec))
