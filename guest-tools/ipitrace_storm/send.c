// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sending side: each method's send between its two stamps, and the method's
 * requirements. ICR fields: Intel SDM vol. 3A, 11.6.1 and 11.12.9; the hypercall:
 * Documentation/virt/kvm/x86/hypercalls.rst, KVM_HC_SEND_IPI.
 */
#include <linux/bitops.h>
#include <linux/irqflags.h>
#include <linux/kvm_para.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <asm/apicdef.h>
#include <asm/cpufeature.h>
#include <asm/fixmap.h>
#include <asm/irq_vectors.h>
#include <asm/msr-index.h>

#include "ipitrace_storm.h"

#define X2APIC_MSR(reg) (APIC_BASE_MSR + ((reg) >> 4))
#define PV_BITMAP_BITS (2 * BITS_PER_LONG)

static void read_cpuid(u32 leaf, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
	asm volatile("cpuid" : "=a"(*eax), "=b"(*ebx), "=c"(*ecx), "=d"(*edx) : "a"(leaf), "c"(0));
}

static __always_inline volatile u32 *xapic(u32 reg)
{
	return (volatile u32 *)(APIC_BASE + reg);
}

bool send_in_x2apic_mode(void)
{
	return read_msr(MSR_IA32_APICBASE) & X2APIC_ENABLE;
}

static void read_apic_id(void *id)
{
	*(u32 *)id = send_in_x2apic_mode() ? read_msr(X2APIC_MSR(APIC_ID)) : *xapic(APIC_ID) >> 24;
}

static int apic_id_of(unsigned int cpu, u32 *id)
{
	return smp_call_function_single(cpu, read_apic_id, id, 1);
}

/* The vector of the storm's IPIs. */
unsigned int send_vector(const struct storm *storm)
{
	const struct storm_params *params = &storm->file.params;

	if (params->send_method != STORM_SMP_CALL)
		return X86_PLATFORM_IPI_VECTOR;
	/* smp_call_function_many() with one CPU does the same as _single(). */
	return params->pattern == STORM_BROADCAST && cpumask_weight(storm->cpus) > 2
		       ? CALL_FUNCTION_VECTOR
		       : CALL_FUNCTION_SINGLE_VECTOR;
}

/* kvm_para_has_feature() is not exported to modules; Documentation/virt/kvm/x86/cpuid.rst. */
bool kvm_feature(unsigned int bit)
{
	u32 leaf, features, ignored, signature[3];

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	for (leaf = KVM_CPUID_SIGNATURE; leaf < KVM_CPUID_SIGNATURE + 0x10000; leaf += 0x100) {
		read_cpuid(leaf, &ignored, &signature[0], &signature[1], &signature[2]);
		if (memcmp(signature, "KVMKVMKVM\0\0\0", sizeof(signature)))
			continue;
		read_cpuid(leaf + 1, &features, &ignored, &ignored, &ignored);
		return features & BIT(bit);
	}
	return false;
}

/* Sets `why` and returns -EOPNOTSUPP if this guest cannot send IPIs of these params. */
int send_check(const struct storm_params *params, char *why, size_t size)
{
	const bool x2apic = send_in_x2apic_mode();
	const char *reason = NULL;

	switch (params->send_method) {
	case STORM_X2APIC:
		if (!x2apic)
			reason = "the APICs are in xAPIC mode";
		else if (params->pattern != STORM_SELF && post_enabled())
			reason = "the guest's kernel uses Passthrough IPI: the ICR is the host's";
		break;
	case STORM_XAPIC:
		if (x2apic)
			reason = "the APICs are in x2APIC mode (nox2apic on the kernel's command "
				 "line changes that)";
		break;
	case STORM_PV_HYPERCALL:
		if (!kvm_feature(KVM_FEATURE_PV_SEND_IPI))
			reason = "the hypervisor does not offer KVM_HC_SEND_IPI "
				 "(KVM_FEATURE_PV_SEND_IPI)";
		break;
	case STORM_PASSTHROUGH:
		if (!post_enabled())
			reason = "the guest's kernel does not use Passthrough IPI";
		break;
	case STORM_SMP_CALL:
		if (params->pattern == STORM_SELF)
			reason = "smp-call: the kernel calls a function on its own CPU without an "
				 "IPI";
		break;
	}
	if (!reason && params->pattern == STORM_BROADCAST &&
	    (params->send_method == STORM_X2APIC || params->send_method == STORM_XAPIC) &&
	    !cpumask_equal(cpu_online_mask, cpu_present_mask))
		reason = "broadcast: some CPUs are offline, and the APIC's \"all but self\" means "
			 "them, too";
	if (!reason)
		return 0;
	strscpy(why, reason, size);
	return -EOPNOTSUPP;
}

static int prepare_icr(struct storm_cpu *sender, bool x2apic)
{
	struct storm_route *route = &sender->route;
	u32 id;
	int error;

	route->msr = X2APIC_MSR(APIC_ICR);
	route->icr_low = APIC_DM_FIXED | X86_PLATFORM_IPI_VECTOR;
	switch (sender->storm->file.params.pattern) {
	case STORM_SELF:
		if (x2apic)
			route->msr = X2APIC_MSR(APIC_SELF_IPI);
		else
			route->icr_low |= APIC_DEST_SELF;
		return 0;
	case STORM_BROADCAST:
		route->icr_low |= APIC_DEST_ALLBUT;
		return 0;
	}
	error = apic_id_of(route->cpu, &id);
	route->icr_high = x2apic ? id : id << 24;
	return error;
}

static int prepare_hypercall(struct storm_cpu *sender)
{
	struct storm_route *route = &sender->route;
	u32 id, least = U32_MAX, greatest = 0;
	unsigned int cpu;
	int error;

	for_each_cpu(cpu, route->cpus) {
		error = apic_id_of(cpu, &id);
		if (error)
			return error;
		least = min(least, id);
		greatest = max(greatest, id);
	}
	if (greatest - least >= PV_BITMAP_BITS)
		return -ERANGE;
	route->pv_min = least;
	for_each_cpu(cpu, route->cpus) {
		error = apic_id_of(cpu, &id);
		if (error)
			return error;
		if (id - least < BITS_PER_LONG)
			route->pv_low |= BIT(id - least);
		else
			route->pv_high |= BIT(id - least - BITS_PER_LONG);
	}
	return 0;
}

static int prepare_posts(struct storm_cpu *sender)
{
	unsigned int cpu;
	u32 id;
	int error;

	for_each_cpu(cpu, sender->route.cpus) {
		error = apic_id_of(cpu, &id);
		if (!error)
			error = post_prepare(sender->storm->cpu[cpu], id);
		if (error)
			return error;
	}
	return 0;
}

/*
 * Determines the route of the sender's IPIs. Returns -ENXIO if a target went
 * offline, -ERANGE if one hypercall cannot address all of them, or -ENOMEM.
 */
int send_prepare(struct storm_cpu *sender)
{
	struct storm_route *route = &sender->route;

	route->cpus = sender->targets;
	route->cpu = cpumask_weight(route->cpus) == 1 ? cpumask_first(route->cpus) : nr_cpu_ids;
	switch (sender->storm->file.params.send_method) {
	case STORM_X2APIC:
		return prepare_icr(sender, true);
	case STORM_XAPIC:
		return prepare_icr(sender, false);
	case STORM_PV_HYPERCALL:
		return prepare_hypercall(sender);
	case STORM_PASSTHROUGH:
		return prepare_posts(sender);
	}
	return 0;
}

static void send_x2apic(const struct storm_route *route, struct storm_send *record)
{
	record->send_tsc = stamp_before();
	write_msr(route->msr, route->icr_low, route->icr_high);
	record->sent_tsc = stamp_after();
}

static void send_xapic(const struct storm_route *route, struct storm_send *record)
{
	const bool shorthand = route->icr_low & APIC_DEST_ALLBUT; /* or APIC_DEST_SELF */
	unsigned long flags;

	/* An interrupt between the two stores may send an IPI and change the destination. */
	if (!shorthand)
		local_irq_save(flags);
	record->send_tsc = stamp_before();
	*xapic(APIC_ICR2) = route->icr_high;
	*xapic(APIC_ICR) = route->icr_low;
	record->sent_tsc = stamp_after();
	if (!shorthand)
		local_irq_restore(flags);
}

static void send_hypercall(const struct storm_route *route, struct storm_send *record)
{
	record->send_tsc = stamp_before();
	kvm_hypercall4(KVM_HC_SEND_IPI, route->pv_low, route->pv_high, route->pv_min,
		       APIC_DM_FIXED | X86_PLATFORM_IPI_VECTOR);
	record->sent_tsc = stamp_after();
}

static void send_posts(const struct storm_cpu *sender, struct storm_send *record)
{
	const struct storm_route *route = &sender->route;
	unsigned long flags;
	unsigned int cpu;

	local_irq_save(flags);
	record->send_tsc = stamp_before();
	for_each_cpu(cpu, route->cpus)
		post(sender->storm->cpu[cpu]->descriptor);
	record->sent_tsc = stamp_after();
	local_irq_restore(flags);
}

static void send_smp_call(const struct storm_route *route, struct storm_send *record)
{
	record->send_tsc = stamp_before();
	if (route->cpu < nr_cpu_ids)
		smp_call_function_single(route->cpu, receive_smp_call, NULL, 0);
	else
		smp_call_function_many(route->cpus, receive_smp_call, NULL, false);
	record->sent_tsc = stamp_after();
}

/* Sends one IPI and stamps it. */
void send_timed(const struct storm_cpu *sender, struct storm_send *record)
{
	const struct storm_route *route = &sender->route;

	preempt_disable();
	switch (sender->storm->file.params.send_method) {
	case STORM_X2APIC:
		send_x2apic(route, record);
		break;
	case STORM_XAPIC:
		send_xapic(route, record);
		break;
	case STORM_PV_HYPERCALL:
		send_hypercall(route, record);
		break;
	case STORM_PASSTHROUGH:
		send_posts(sender, record);
		break;
	case STORM_SMP_CALL:
		send_smp_call(route, record);
		break;
	}
	preempt_enable();
}

/* The fault STORM_INJECT_LOST_IPI: stamps, and no IPI between them. */
void send_nothing(struct storm_send *record)
{
	record->send_tsc = stamp_before();
	record->sent_tsc = stamp_after();
}
