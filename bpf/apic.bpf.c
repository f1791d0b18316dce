// SPDX-License-Identifier: GPL-2.0-only
/* The virtual APIC in KVM: sending, accepting, injecting, end of interrupt, wake-up. */

#ifdef HAVE_kvm_apic_ipi
PROBE(kvm_apic_ipi)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_apic_ipi, FIELD(kvm_apic_ipi, dest_id),
		       FIELD(kvm_apic_ipi, icr_low), 0);
	return 0;
}
#endif

#ifdef HAVE_kvm_apic_accept_irq
PROBE(kvm_apic_accept_irq)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_apic_accept_irq, FIELD(kvm_apic_accept_irq, dm),
		       FIELD(kvm_apic_accept_irq, apicid), FIELD(kvm_apic_accept_irq, vec));
	return 0;
}
#endif

#ifdef HAVE_kvm_apicv_accept_irq
PROBE(kvm_apicv_accept_irq)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_apicv_accept_irq, FIELD(kvm_apicv_accept_irq, dm),
		       FIELD(kvm_apicv_accept_irq, apicid), FIELD(kvm_apicv_accept_irq, vec));
	return 0;
}
#endif

#ifdef HAVE_kvm_eoi
PROBE(kvm_eoi)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_eoi, 0, 0, FIELD(kvm_eoi, vector));
	return 0;
}
#endif

#ifdef HAVE_kvm_pv_eoi
PROBE(kvm_pv_eoi)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_pv_eoi, 0, 0, FIELD(kvm_pv_eoi, vector));
	return 0;
}
#endif

#ifdef HAVE_kvm_apic
/* Register offsets in the APIC page, Intel SDM vol. 3, "Local APIC Register Address Map". */
#define APIC_ICR 0x300
#define APIC_ICR2 0x310
#define APIC_SELF_IPI 0x3f0

PROBE(kvm_apic)
{
	u32 reg = FIELD(kvm_apic, reg);
	int vcpu;

	if (reg != APIC_ICR && reg != APIC_ICR2 && reg != APIC_SELF_IPI)
		return 0;
	vcpu = this_vcpu();
	if (vcpu >= 0)
		record(vcpu, ROW_kvm_apic, FIELD(kvm_apic, val), reg, FIELD(kvm_apic, rw));
	return 0;
}
#endif

#ifdef HAVE_kvm_inj_virq
PROBE(kvm_inj_virq)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_inj_virq, 0, 0, FIELD(kvm_inj_virq, vector));
	return 0;
}
#endif

#ifdef HAVE_kvm_vcpu_wakeup
PROBE(kvm_vcpu_wakeup)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_vcpu_wakeup, FIELD(kvm_vcpu_wakeup, ns), 0,
		       !!FIELD(kvm_vcpu_wakeup, waited) | !!FIELD(kvm_vcpu_wakeup, valid) << 1);
	return 0;
}
#endif
