// SPDX-License-Identifier: GPL-2.0-only
/*
 * IPIs by Hyper-V's hypercalls: enabling hypercalls, and the hypercall of the storm.
 *
 * Microsoft's Hypervisor Top Level Functional Specification (TLFS): "Hypercall Interface",
 * HvCallSendSyntheticClusterIpi, HvCallSendSyntheticClusterIpiEx.
 */
#include "../storm_abi.h"
#include "microguest.h"

typedef unsigned int u32;
typedef unsigned long long u64;

#define CALL_OFFSET_IS(field, value) \
	_Static_assert(__builtin_offsetof(struct mg_hv_call, field) == (value), #field)
CALL_OFFSET_IS(control, MG_HV_CALL_CONTROL);
CALL_OFFSET_IS(input, MG_HV_CALL_INPUT);
CALL_OFFSET_IS(output, MG_HV_CALL_OUTPUT);

#define HV_X64_MSR_GUEST_OS_ID 0x40000000
#define HV_X64_MSR_HYPERCALL 0x40000001
#define HYPERCALL_ENABLED 1
#define OPEN_SOURCE_OS 0x80000000 /* bit 63 of the id, in its upper half */

#define SEND_IPI 0x000b
#define SEND_IPI_EX 0x0015
#define FAST (1ull << 16) /* the input is in registers */
#define VARIABLE_HEADER_SHIFT 17 /* its size, in 8 bytes */
#define SPARSE_SET 0
#define ALL_PROCESSORS 1

static inline void wrmsr(u32 msr, u32 low, u32 high)
{
	asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high) : "memory");
}

/*
 * For the sender only. The VMM creates vCPUs in the order of their numbers: KVM's VP index
 * of each is the same number. All of them are in the first bank of a sparse set.
 */
void mg_enable_hyperv(const volatile struct storm_params *params, u32 vector, u64 processors)
{
	volatile struct mg_hv_call *call = (void *)MG_HV_CALL;
	const int all = params->pattern == STORM_BROADCAST_SELF;

	wrmsr(HV_X64_MSR_GUEST_OS_ID, 0, OPEN_SOURCE_OS);
	wrmsr(HV_X64_MSR_HYPERCALL, MG_HV_PAGE | HYPERCALL_ENABLED, 0);

	if (params->send_method == STORM_HV_HYPERCALL) {
		call->control = SEND_IPI | FAST;
		call->input = vector;
		call->output = processors;
		return;
	}
	call->control = SEND_IPI_EX | (all ? 0 : 1ull << VARIABLE_HEADER_SHIFT);
	call->input = (u64)&call->vector;
	call->output = 0;
	call->vector = vector;
	call->format = all ? ALL_PROCESSORS : SPARSE_SET;
	call->valid_banks = !all;
	call->bank[0] = processors;
}
