// SPDX-License-Identifier: GPL-2.0-only
/* APICv and AVIC, and what changes a guest's interrupts or clock from outside a vCPU. */

#ifdef HAVE_kvm_avic_incomplete_ipi
PROBE(kvm_avic_incomplete_ipi)
{
	int vcpu = this_vcpu();
	u64 icr;

	if (vcpu < 0)
		return 0;
	icr = (u64)FIELD(kvm_avic_incomplete_ipi, icrh) << 32 |
	      (u32)FIELD(kvm_avic_incomplete_ipi, icrl);
	record(vcpu, ROW_kvm_avic_incomplete_ipi, icr, FIELD(kvm_avic_incomplete_ipi, id),
	       FIELD(kvm_avic_incomplete_ipi, index));
	return 0;
}
#endif

#ifdef HAVE_kvm_avic_kick_vcpu_slowpath
PROBE(kvm_avic_kick_vcpu_slowpath)
{
	int vcpu = this_vcpu();
	u64 icr;

	if (vcpu < 0)
		return 0;
	icr = (u64)FIELD(kvm_avic_kick_vcpu_slowpath, icrh) << 32 |
	      (u32)FIELD(kvm_avic_kick_vcpu_slowpath, icrl);
	record(vcpu, ROW_kvm_avic_kick_vcpu_slowpath, icr,
	       FIELD(kvm_avic_kick_vcpu_slowpath, index), 0);
	return 0;
}
#endif

#ifdef HAVE_kvm_avic_doorbell
PROBE(kvm_avic_doorbell)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_avic_doorbell, 0, FIELD(kvm_avic_doorbell, apicid),
		       FIELD(kvm_avic_doorbell, vcpuid));
	return 0;
}
#endif

/*
 * The next three also happen in threads that are no vCPU's: there they are
 * counted, atomically, and leave no record, so that every ring keeps one writer.
 */
#ifdef HAVE_kvm_apicv_inhibit_changed
PROBE(kvm_apicv_inhibit_changed)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_apicv_inhibit_changed,
		       FIELD(kvm_apicv_inhibit_changed, inhibits),
		       FIELD(kvm_apicv_inhibit_changed, reason),
		       !!FIELD(kvm_apicv_inhibit_changed, set));
	else if (in_our_process())
		count_elsewhere(ROW_kvm_apicv_inhibit_changed);
	return 0;
}
#endif

#ifdef HAVE_kvm_write_tsc_offset
PROBE(kvm_write_tsc_offset)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_write_tsc_offset, FIELD(kvm_write_tsc_offset, next_tsc_offset),
		       FIELD(kvm_write_tsc_offset, vcpu_id), 0);
	else if (in_our_process())
		count_elsewhere(ROW_kvm_write_tsc_offset);
	return 0;
}
#endif

#ifdef HAVE_kvm_pi_irte_update
PROBE(kvm_pi_irte_update)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_pi_irte_update, FIELD(kvm_pi_irte_update, gsi),
		       FIELD(kvm_pi_irte_update, host_irq), FIELD(kvm_pi_irte_update, gvec));
	else if (in_our_process())
		count_elsewhere(ROW_kvm_pi_irte_update);
	return 0;
}
#endif
