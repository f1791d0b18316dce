// SPDX-License-Identifier: GPL-2.0-only
/*
 * Passthrough IPI: detecting and enabling it, and writes through the other MSR.
 */
#include "../storm_abi.h"
#include "microguest.h"

typedef unsigned int u32;
typedef unsigned long long u64;

#define START_OFFSET_IS(field, value) \
	_Static_assert(__builtin_offsetof(struct mg_start, field) == (value), #field)
START_OFFSET_IS(gdt, MG_START_GDT);
START_OFFSET_IS(idt, MG_START_IDT);
START_OFFSET_IS(cr0, MG_START_CR0);
START_OFFSET_IS(cr3, MG_START_CR3);
START_OFFSET_IS(cr4, MG_START_CR4);
START_OFFSET_IS(efer, MG_START_EFER);

/* lab/kernel/patches: arch/x86/include/uapi/asm/kvm_para.h */
#define KVM_CPUID_FEATURES 0x40000001
#define KVM_FEATURE_PASSTHROUGH_IPI 30
#define MSR_KVM_PASSTHROUGH_IPI 0x4b564df0
#define MSR_KVM_PASSTHROUGH_IPI_ICR 0x4b564df1
#define KVM_PASSTHROUGH_IPI_ENABLED 1

#define EFER 0xc0000080
#define X2APIC_ICR 0x830
#define ICR_INIT 0x4500 /* level assert */
#define ICR_SIPI 0x4600

extern const char mg_started[];

static inline u64 rdmsr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u32 low, u32 high)
{
	asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high) : "memory");
}

static u32 features(void)
{
	u32 eax = KVM_CPUID_FEATURES, ecx = 0;

	asm volatile("cpuid" : "+a"(eax), "+c"(ecx)::"rbx", "rdx");
	return eax;
}

static void start_others(u32 n_vcpus)
{
	volatile struct mg_start *start = (void *)MG_START;
	u32 page = (u32)(u64)mg_started >> 12;
	u64 value;

	asm volatile("sgdt %0" : "=m"(start->gdt));
	asm volatile("sidt %0" : "=m"(start->idt));
	asm volatile("mov %%cr0, %0" : "=r"(value));
	start->cr0 = value;
	asm volatile("mov %%cr3, %0" : "=r"(value));
	start->cr3 = value;
	asm volatile("mov %%cr4, %0" : "=r"(value));
	start->cr4 = value;
	start->efer = rdmsr(EFER);
	for (u32 i = 1; i < n_vcpus; i++) {
		wrmsr(MSR_KVM_PASSTHROUGH_IPI_ICR, ICR_INIT, i);
		wrmsr(MSR_KVM_PASSTHROUGH_IPI_ICR, ICR_SIPI | page, i);
	}
}

/* For the sender only: a target does not need to enable anything. */
void mg_enable_passthrough(volatile struct mg_vcpu *vcpus, u32 n_vcpus)
{
	volatile struct mg_foreign *foreign = (void *)MG_FOREIGN;
	const u32 icr = foreign->emulated ? MSR_KVM_PASSTHROUGH_IPI_ICR : X2APIC_ICR;

	if (!(features() & 1u << KVM_FEATURE_PASSTHROUGH_IPI))
		asm volatile("ud2");
	wrmsr(MSR_KVM_PASSTHROUGH_IPI, KVM_PASSTHROUGH_IPI_ENABLED, 0);
	vcpus[0].descriptors = rdmsr(MSR_KVM_PASSTHROUGH_IPI) & ~0xfffull;
	start_others(n_vcpus);

	/* For the lab: an ICR write requested by the VMM. */
	for (u32 i = 1; foreign->count && i < n_vcpus; i++)
		while (!vcpus[i].ready)
			asm volatile("pause");
	for (; foreign->count; foreign->count--)
		wrmsr(icr, foreign->icr_low, foreign->apic_id);
}
