// SPDX-License-Identifier: GPL-2.0-only
/*
 * Passthrough IPI: sending through the target's posted-interrupt descriptor, if the
 * guest's kernel itself does this. Descriptor and MSRs: lab/kernel/patches in ipitrace's
 * sources, Documentation/virt/kvm/x86/passthrough-ipi.rst.
 */
#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/io.h>
#include <asm/apicdef.h>
#include <asm/irq_vectors.h>

#include "ipitrace_storm.h"

#define FEATURE_PASSTHROUGH_IPI 30
#define MSR_PASSTHROUGH_IPI 0x4b564df0
#define PASSTHROUGH_IPI_ENABLED 1

#define PI_SIZE 64
#define PI_CONTROL 4 /* the fifth u64: ON and SN are its bits 0 and 1, NV at 16, NDST at 32 */
#define PI_ON 1
#define PI_ON_OR_SN 3

/*
 * Whether the kernel uses Passthrough IPI. The ICR is then the host's, and the guest's
 * values for it have another meaning.
 */
bool post_enabled(void)
{
	return kvm_feature(FEATURE_PASSTHROUGH_IPI) &&
	       read_msr(MSR_PASSTHROUGH_IPI) & PASSTHROUGH_IPI_ENABLED;
}

int post_prepare(struct storm_cpu *target, u32 apic_id)
{
	const u64 all = read_msr(MSR_PASSTHROUGH_IPI) & PAGE_MASK;

	if (target->descriptor) /* another sender's target, too */
		return 0;
	target->descriptor = memremap(all + PI_SIZE * (u64)apic_id, PI_SIZE, MEMREMAP_WB);
	return target->descriptor ? 0 : -ENOMEM;
}

void post_forget(struct storm_cpu *target)
{
	if (target->descriptor)
		memunmap(target->descriptor);
}

/*
 * The operation of a CPU that virtualises IPIs (SDM vol. 3C, 31.1.6). Interrupts must be
 * off: an interrupt between setting ON and writing the ICR delays other senders.
 */
void post(u64 *descriptor)
{
	u64 *const control = descriptor + PI_CONTROL;
	u64 old, new;

	if (test_and_set_bit(X86_PLATFORM_IPI_VECTOR, (unsigned long *)descriptor))
		return;
	old = READ_ONCE(*control);
	do {
		if (old & PI_ON_OR_SN)
			return;
		new = old | PI_ON;
	} while (!try_cmpxchg(control, &old, new));
	/* WRMSR to the x2APIC does not wait for the stores. */
	asm volatile("lfence" ::: "memory");
	write_msr(APIC_BASE_MSR + (APIC_ICR >> 4), (u8)(new >> 16), new >> 32);
}
