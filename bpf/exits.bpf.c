// SPDX-License-Identifier: GPL-2.0-only
/* Exits and entries of the guest, and the instructions KVM emulated for it. */

#ifdef HAVE_kvm_exit
PROBE(kvm_exit)
{
	int vcpu = this_vcpu();
	u64 info1 = 0;
	u16 isa = HOST_ISA;

	if (vcpu < 0)
		return 0;
#ifdef ARG_kvm_exit_info1
	info1 = FIELD(kvm_exit, info1);
#endif
#ifdef ARG_kvm_exit_isa
	isa = FIELD(kvm_exit, isa);
#endif
	record(vcpu, ROW_kvm_exit, info1, FIELD(kvm_exit, exit_reason), isa);
	return 0;
}
#endif

#ifdef HAVE_kvm_entry
PROBE(kvm_entry)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_kvm_entry, 0, 0, 0);
	return 0;
}
#endif

#ifdef HAVE_kvm_emulate_insn
PROBE(kvm_emulate_insn)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		count(vcpu, ROW_kvm_emulate_insn);
	return 0;
}
#endif

#ifdef HAVE_kvm_msr
#define MSR_X2APIC_ICR 0x830
#define MSR_X2APIC_SELF_IPI 0x83f

PROBE(kvm_msr)
{
	u32 ecx = FIELD(kvm_msr, ecx);
	int vcpu;

	if (ecx != MSR_X2APIC_ICR && ecx != MSR_X2APIC_SELF_IPI)
		return 0;
	vcpu = this_vcpu();
	if (vcpu >= 0)
		record(vcpu, ROW_kvm_msr, FIELD(kvm_msr, data), ecx,
		       !!FIELD(kvm_msr, write) | !!FIELD(kvm_msr, exception) << 1);
	return 0;
}
#endif

#ifdef HAVE_kvm_hypercall
#define KVM_HC_SEND_IPI 10

PROBE(kvm_hypercall)
{
	u64 nr = FIELD(kvm_hypercall, nr);
	int vcpu;

	if (nr != KVM_HC_SEND_IPI)
		return 0;
	vcpu = this_vcpu();
	if (vcpu >= 0)
		record(vcpu, ROW_kvm_hypercall, FIELD(kvm_hypercall, a0), nr, 0);
	return 0;
}
#endif
