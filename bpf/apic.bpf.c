// SPDX-License-Identifier: GPL-2.0-only
/* The virtual APIC in KVM: sending, accepting, injecting, end of interrupt, wake-up. */

RECORD(kvm_apic_ipi, FIELD(kvm_apic_ipi, dest_id), FIELD(kvm_apic_ipi, icr_low), 0)

/* Hyper-V's hypercalls do not use the APIC that kvm_apic_ipi is fired for. */
RECORD(kvm_hv_send_ipi, FIELD(kvm_hv_send_ipi, processor_mask), 0, FIELD(kvm_hv_send_ipi, vector))

RECORD(kvm_hv_send_ipi_ex, FIELD(kvm_hv_send_ipi_ex, valid_bank_mask),
       FIELD(kvm_hv_send_ipi_ex, format), FIELD(kvm_hv_send_ipi_ex, vector))

RECORD(kvm_apic_accept_irq, FIELD(kvm_apic_accept_irq, dm), FIELD(kvm_apic_accept_irq, apicid),
       FIELD(kvm_apic_accept_irq, vec))

RECORD(kvm_apicv_accept_irq, FIELD(kvm_apicv_accept_irq, dm), FIELD(kvm_apicv_accept_irq, apicid),
       FIELD(kvm_apicv_accept_irq, vec))

RECORD(kvm_eoi, 0, 0, FIELD(kvm_eoi, vector))

RECORD(kvm_pv_eoi, 0, 0, FIELD(kvm_pv_eoi, vector))

/* Register offsets in the APIC page, Intel SDM vol. 3, "Local APIC Register Address Map". */
#define APIC_ICR 0x300
#define APIC_ICR2 0x310
#define APIC_SELF_IPI 0x3f0

static __always_inline bool is_icr_register(u32 reg)
{
	return reg == APIC_ICR || reg == APIC_ICR2 || reg == APIC_SELF_IPI;
}

RECORD_IF(kvm_apic, is_icr_register, FIELD(kvm_apic, val), FIELD(kvm_apic, reg),
	  FIELD(kvm_apic, rw))

RECORD(kvm_inj_virq, 0, 0, FIELD(kvm_inj_virq, vector))

RECORD(kvm_vcpu_wakeup, FIELD(kvm_vcpu_wakeup, ns), 0,
       !!FIELD(kvm_vcpu_wakeup, waited) | !!FIELD(kvm_vcpu_wakeup, valid) << 1)
