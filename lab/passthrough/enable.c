// SPDX-License-Identifier: Apache-2.0
/*
 * Enables Passthrough IPI for a VM of a QEMU that does not support it. The preloaded library
 * enables the capability once there is an irqchip, and sets the bit in each vCPU's CPUID.
 * Interface: lab/kernel/patches, Documentation/virt/kvm/x86/passthrough-ipi.rst.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#define CAP_PASSTHROUGH_IPI 0x50490000
#define CPUID_FEATURES 0x40000001
#define FEATURE_PASSTHROUGH_IPI 30

/* An unused range of QEMU's pc, between the HPET and the local APICs. */
#define DESCRIPTORS 0xfed80000
#define VCPU_IDS 64

typedef int ioctl_fn(int fd, unsigned long request, ...);

static void enable(ioctl_fn *next, int vm)
{
	struct kvm_enable_cap cap = {
		.cap = CAP_PASSTHROUGH_IPI,
		.args = {DESCRIPTORS, VCPU_IDS},
	};

	if (next(vm, KVM_ENABLE_CAP, &cap)) {
		perror("KVM_CAP_X86_PASSTHROUGH_IPI");
		exit(EXIT_FAILURE);
	}
}

static void offer(struct kvm_cpuid2 *cpuid)
{
	for (__u32 i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == CPUID_FEATURES)
			cpuid->entries[i].eax |= 1u << FEATURE_PASSTHROUGH_IPI;
}

int ioctl(int fd, unsigned long request, ...)
{
	static ioctl_fn *next;
	va_list arguments;
	void *argument;
	int result;

	if (!next)
		next = (ioctl_fn *)dlsym(RTLD_NEXT, "ioctl");
	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == KVM_SET_CPUID2)
		offer(argument);
	result = next(fd, request, argument);
	if (request == KVM_CREATE_IRQCHIP && !result)
		enable(next, fd);
	return result;
}
