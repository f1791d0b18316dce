// SPDX-License-Identifier: GPL-2.0-only
/*
 * The micro-guest: the smallest x86-64 guest that sends IPIs and stamps them.
 *
 * The VMM starts every vCPU at the payload's first byte in long mode, with
 * identity-mapped memory, GDT, IDT and TSS. vCPU 0 is the sender, all others are
 * targets. In a ring, every vCPU is both.
 */
#include "../storm_abi.h"
#include "microguest.h"

typedef unsigned int u32;
typedef unsigned long long u64;

#define OFFSET_IS(field, value) \
	_Static_assert(__builtin_offsetof(struct mg_vcpu, field) == (value), #field)
OFFSET_IS(handled, MG_VCPU_HANDLED);
OFFSET_IS(ready, MG_VCPU_READY);
OFFSET_IS(next_receipt, MG_VCPU_NEXT_RECEIPT);
OFFSET_IS(end_receipt, MG_VCPU_END_RECEIPT);
OFFSET_IS(xapic, MG_VCPU_XAPIC);
OFFSET_IS(stack, MG_VCPU_STACK);
_Static_assert(__builtin_offsetof(struct storm_params, handler_burn_cycles) == MG_PARAMS_BURN,
	       "entry.S reads it there");
_Static_assert(sizeof(struct mg_vcpu) == MG_VCPU_SIZE, "struct mg_vcpu");
_Static_assert(__builtin_offsetof(struct storm_status, sent) == 8, "entry.S reads it there");
_Static_assert(__builtin_offsetof(struct storm_status, spurious) == 40, "entry.S counts there");
_Static_assert(sizeof(struct storm_receipt) == 24, "entry.S steps by this");

/* Intel SDM vol. 3A, 11.12.1.2 (x2APIC MSRs) and 11.4.1 (xAPIC registers). */
#define X2APIC_TPR 0x808
#define X2APIC_SVR 0x80f
#define X2APIC_ICR 0x830
#define X2APIC_SELF_IPI 0x83f
#define XAPIC_TPR 0x80
#define XAPIC_LDR 0xd0
#define XAPIC_DFR 0xe0
#define XAPIC_SVR 0xf0
#define XAPIC_ICR_LOW 0x300
#define XAPIC_ICR_HIGH 0x310
#define SVR_ENABLED 0x100
#define DFR_FLAT 0xffffffff
#define FLAT_IDS 8 /* 11.6.2.2: one bit for each APIC */
#define CLUSTER_IDS 16 /* 11.12.10.2: the APICs of a cluster, likewise */
#define ICR_LOGICAL 0x800
#define ICR_TO_SELF 0x40000
#define ICR_TO_ALL 0x80000
#define ICR_TO_ALL_BUT_SELF 0xc0000

void mg_wait_halted(void);
void mg_wait_kernel(void);
void mg_open_window(u64 sent);
void mg_wait_user(void);
void mg_sender_in_user_mode(void);
void mg_sender(void);
void mg_main(u32 index);
void mg_exception(u64 vector, u64 error, u64 rip);
void mg_enable_hyperv(const volatile struct storm_params *params, u32 vector, u64 processors);
void mg_enable_passthrough(volatile struct mg_vcpu *all, u32 n_vcpus);

static const volatile struct storm_params *const params = (void *)MG_PARAMS;
static volatile struct storm_status *const status = (void *)MG_STATUS;
static volatile struct mg_vcpu *const vcpus = (void *)MG_VCPUS;

static inline u64 rdtsc(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

/* Not before earlier loads are complete: else the stamp may be older than its event. */
static inline u64 rdtsc_after(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u32 low, u32 high)
{
	asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high) : "memory");
}

static inline void pause(void)
{
	asm volatile("pause" ::: "memory");
}

static inline volatile u32 *xapic(u32 offset)
{
	return (volatile u32 *)(u64)(MG_XAPIC_BASE + offset);
}

/* The VMM handles the OUT, reads its counters and continues. Kernel mode only. */
static void out_state(enum storm_state state)
{
	status->state = state;
	asm volatile("outb %b0, %w1" ::"a"(state), "d"(MG_PORT) : "memory");
}

/* The index of the vCPU that executes this. */
static u32 own_index(void)
{
	u64 here;

	asm volatile("mov %%r15, %0" : "=r"(here));
	return (here - MG_VCPUS) / MG_VCPU_SIZE;
}

static u32 n_senders(void)
{
	return params->pattern == STORM_RING ? params->n_vcpus : 1;
}

/* The log of sender `self`. */
static volatile struct storm_send *sends_of(u32 self)
{
	return (struct storm_send *)params->sends + self * (params->warmup + params->count);
}

/* Whether the host's CPU is an AMD, or a Hygon: it has VMMCALL (APM vol. 3), others VMCALL. */
static int has_vmmcall(void)
{
	u32 eax = 0, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return ebx == 0x68747541 || ebx == 0x6f677948; /* Auth(enticAMD), Hygo(nGenuine) */
}

void mg_exception(u64 vector, u64 error, u64 rip)
{
	status->fault_vector = vector;
	status->fault_vcpu = own_index();
	status->fault_error = error;
	status->fault_rip = rip;
	out_state(STORM_FAULTED);
}

/* The destination of the ICR for logical mode; a vCPU's APIC id is its index. */
static u32 logical_id(u32 index)
{
	if (params->send_method == STORM_XAPIC)
		return index < FLAT_IDS ? 1u << index : 0;
	return index / CLUSTER_IDS << 16 | 1u << index % CLUSTER_IDS;
}

static void enable_apic(u32 index)
{
	if (params->send_method == STORM_XAPIC) {
		/* Only sends by logical ids need these. */
		if (params->pattern == STORM_MULTICAST ||
		    params->pattern == STORM_UNICAST_LOGICAL) {
			*xapic(XAPIC_DFR) = DFR_FLAT;
			*xapic(XAPIC_LDR) = logical_id(index) << 24;
		}
		*xapic(XAPIC_SVR) = SVR_ENABLED | MG_VECTOR_SPURIOUS;
		*xapic(XAPIC_TPR) = 0;
	} else {
		wrmsr(X2APIC_SVR, SVR_ENABLED | MG_VECTOR_SPURIOUS, 0);
		wrmsr(X2APIC_TPR, 0, 0);
	}
}

/* Touches all pages: none is accessed for the first time during a measurement. */
static void touch(u64 from, u64 to)
{
	for (u64 at = from; at < to; at += 4096)
		*(volatile u64 *)at = 0;
}

/* Sends from kernel mode; service_entry in entry.S reads the two stamps. */
static inline void timed_send(volatile struct storm_send *record, u32 msr, u32 low, u32 high)
{
	register u64 before_low asm("r12");
	register u64 before_high asm("r13");
	u32 eax = msr ? MG_SERVICE_SEND_X2APIC : MG_SERVICE_SEND_XAPIC, edx;

	asm volatile("int3"
		     : "+a"(eax), "=d"(edx), "=r"(before_low), "=r"(before_high)
		     : "b"(MG_XAPIC_BASE + (u64)XAPIC_ICR_LOW), "c"(msr), "S"(low), "D"(high)
		     : "memory", "cc");
	record->send_tsc = before_high << 32 | before_low;
	record->sent_tsc = (u64)edx << 32 | eax;
}

/* The same for `count` vCPUs through their posted-interrupt descriptors; see mg_post. */
static inline void timed_post(volatile struct storm_send *record, u32 vector, u32 first, u32 count)
{
	register u64 before_low asm("r12");
	register u64 before_high asm("r13");
	u64 descriptor = vcpus[0].descriptors + 64ull * first;
	u32 eax = MG_SERVICE_POST, edx;

	asm volatile("int3"
		     : "+a"(eax), "=d"(edx), "=r"(before_low), "=r"(before_high), "+b"(descriptor),
		       "+D"(count)
		     : "S"(vector)
		     : "rcx", "memory", "cc");
	record->send_tsc = before_high << 32 | before_low;
	record->sent_tsc = (u64)edx << 32 | eax;
}

/* The same for the vCPUs of `targets`, by one KVM_HC_SEND_IPI; see mg_vmcall. */
static inline void timed_hypercall(volatile struct storm_send *record, u32 vector, u64 targets)
{
	register u64 before_low asm("r12");
	register u64 before_high asm("r13");
	u64 lowest = __builtin_ctzll(targets);
	u32 eax = vcpus[0].vmmcall ? MG_SERVICE_VMMCALL : MG_SERVICE_VMCALL, edx;

	asm volatile("int3"
		     : "+a"(eax), "=d"(edx), "=r"(before_low), "=r"(before_high)
		     : "b"(targets >> lowest), "c"(0ull), "S"(vector), "D"(lowest)
		     : "memory", "cc");
	record->send_tsc = before_high << 32 | before_low;
	record->sent_tsc = (u64)edx << 32 | eax;
}

/* The same by the Hyper-V hypercall that mg_enable_hyperv() prepared; see mg_hv_send. */
static inline void timed_hv_send(volatile struct storm_send *record)
{
	register u64 before_low asm("r12");
	register u64 before_high asm("r13");
	u32 eax = MG_SERVICE_HV, edx;

	asm volatile("int3"
		     : "+a"(eax), "=d"(edx), "=r"(before_low), "=r"(before_high)
		     :
		     : "rbx", "rcx", "memory", "cc");
	record->send_tsc = before_high << 32 | before_low;
	record->sent_tsc = (u64)edx << 32 | eax;
}

static inline void ask(u32 service, u32 operand)
{
	u32 eax = service;

	asm volatile("int3" : "+a"(eax) : "S"(operand) : "rdx", "memory", "cc");
}

/* Reports a state to the VMM from user mode. */
static void report(enum storm_state state)
{
	status->state = state;
	ask(MG_SERVICE_REPORT, state);
}

/* The vCPUs that handle the IPIs of vCPU `self`: bit n is vCPU n. */
static u64 targets_of(u32 self)
{
	const u64 all = ~0ull >> (64 - params->n_vcpus);

	switch (params->pattern) {
	case STORM_SELF:
		return 1ull << self;
	case STORM_BROADCAST:
		return all & ~(1ull << self);
	case STORM_BROADCAST_SELF:
		return all;
	case STORM_MULTICAST:
		return params->target_mask;
	case STORM_RING:
		return 1ull << (self + 1) % params->n_vcpus;
	}
	return 1ull << params->target;
}

static int by_hyperv(void)
{
	return params->send_method == STORM_HV_HYPERCALL ||
	       params->send_method == STORM_HV_HYPERCALL_EX;
}

/* Sends one IPI as described by params, and stamps it. */
static void send(volatile struct storm_send *record, u64 targets)
{
	const int xapic_mode = params->send_method == STORM_XAPIC;
	u32 low = MG_VECTOR_TARGET, high = __builtin_ctzll(targets), msr = X2APIC_ICR;

	record->target = high;
	switch (params->pattern) {
	case STORM_BROADCAST:
		record->target = STORM_ALL_BUT_SELF;
		low |= ICR_TO_ALL_BUT_SELF;
		high = 0;
		break;
	case STORM_BROADCAST_SELF:
		record->target = STORM_ALL;
		low = MG_VECTOR_SELF | ICR_TO_ALL;
		high = 0;
		break;
	case STORM_SELF:
		low = MG_VECTOR_SELF | (xapic_mode ? ICR_TO_SELF : 0);
		high = 0;
		msr = X2APIC_SELF_IPI;
		break;
	case STORM_UNICAST_LOGICAL:
		low |= ICR_LOGICAL;
		high = logical_id(high);
		break;
	case STORM_MULTICAST: /* of cluster 0, or flat: the same bits */
		record->target = STORM_TARGET_MASK;
		low |= ICR_LOGICAL;
		high = targets;
		break;
	case STORM_RING: /* the target is a sender, too */
		low = MG_VECTOR_SELF;
		break;
	}
	if (params->send_method == STORM_PASSTHROUGH)
		timed_post(record, low & 0xff, __builtin_ctzll(targets),
			   params->pattern == STORM_BROADCAST ? params->n_vcpus - 1 : 1);
	else if (params->send_method == STORM_PV_HYPERCALL)
		timed_hypercall(record, low & 0xff, targets);
	else if (by_hyperv())
		timed_hv_send(record);
	else if (xapic_mode)
		timed_send(record, 0, low, high << 24);
	else
		timed_send(record, msr, low, high);
}

static void inject(volatile struct storm_send *record)
{
	switch (params->inject) {
	case STORM_INJECT_LOST_IPI:
		record->send_tsc = rdtsc();
		record->sent_tsc = rdtsc();
		record->target = params->target;
		return;
	case STORM_INJECT_HANG:
		for (;;)
			pause();
	case STORM_INJECT_TRIPLE_FAULT:
		ask(MG_SERVICE_TRIPLE_FAULT, 0);
	}
}

/* Whether every target's count has advanced from `before`: the sender waits for this. */
struct wait {
	u64 targets;
	u32 first, last;
	u64 before[MG_MAX_VCPUS];
};

static int acknowledged(const struct wait *wait)
{
	for (u32 i = wait->first; i <= wait->last; i++)
		if (wait->targets >> i & 1 && vcpus[i].handled == wait->before[i])
			return 0;
	return 1;
}

/* The TSC when every acknowledgement was seen, or 0 after a time-out. */
static u64 wait_for_acknowledgement(const struct wait *wait, u64 deadline)
{
	while (!acknowledged(wait)) {
		if (rdtsc() > deadline)
			return 0;
		pause();
	}
	return rdtsc_after();
}

static int gave_up(void)
{
	return status->incomplete > params->max_incomplete;
}

/* vCPU `self` sends `count` IPIs, starting at number `seq`, or fewer if too many timed out. */
static void storm(u32 self, u64 seq, u64 count, int injecting)
{
	const u64 inject_at = seq + count / 2, end = seq + count;
	const u64 ready = params->target_state == STORM_PREEMPTED ? MG_READY_PREEMPTED : MG_READY;
	struct wait wait = {.targets = targets_of(self)};

	wait.first = __builtin_ctzll(wait.targets);
	wait.last = 63 - __builtin_clzll(wait.targets);
	for (; seq < end && !gave_up(); seq++) {
		volatile struct storm_send *record = sends_of(self) + seq;
		u64 start;

		while (vcpus[params->target].ready != ready)
			pause(); /* not yet masked, or preempted, again */
		start = rdtsc() + params->pace_cycles;
		while (rdtsc() < start)
			pause();
		for (u32 i = wait.first; i <= wait.last; i++)
			wait.before[i] = vcpus[i].handled;
		record->seq = seq;
		record->sender = self;
		if (injecting && params->inject && seq == inject_at)
			inject(record);
		else
			send(record, wait.targets);
		record->ack_tsc =
			wait_for_acknowledgement(&wait, record->send_tsc + params->timeout_cycles);
		if (!record->ack_tsc)
			__atomic_fetch_add(&status->incomplete, 1, __ATOMIC_RELAXED);
		if (self == 0)
			status->sent = seq + 1;
	}
}

/* Waits until every sender has come to this phase. */
static void meet(u32 self, u64 phase)
{
	vcpus[self].phase = phase;
	for (u32 i = 0; i < n_senders(); i++)
		while (vcpus[i].phase < phase)
			pause();
}

/* The main function of a sender, in user mode. vCPU 0 reports for all. */
void mg_sender(void)
{
	const u32 self = own_index();

	vcpus[self].ready = MG_READY;
	for (u32 i = 1; i < params->n_vcpus; i++)
		while (!vcpus[i].ready)
			pause();
	if (self == 0)
		report(STORM_WARMING_UP);
	meet(self, 1);
	storm(self, 0, params->warmup, 0);
	meet(self, 2);
	if (!gave_up()) {
		if (self == 0)
			report(STORM_MEASURING);
		meet(self, 3);
		storm(self, params->warmup, params->count, 1);
		meet(self, 4);
	}
	if (self == 0)
		report(gave_up() ? STORM_GAVE_UP : STORM_DONE);
	for (;;)
		pause();
}

/*
 * A target with interrupts disabled, as in a guest's critical section. It enables them
 * after the send, and disables them again when the sender is done with that IPI, handled
 * or lost. `ready` tells the sender that they are disabled: every IPI is sent only then.
 */
static void wait_masked(volatile struct mg_vcpu *self)
{
	const volatile struct storm_send *const sends = (void *)params->sends;
	const u64 total = params->warmup + params->count;
	u64 sent;

	while ((sent = status->sent) < total) {
		self->ready = MG_READY;
		while (!sends[sent].sent_tsc)
			pause();
		self->ready = 0;
		mg_open_window(sent);
	}
}

void mg_main(u32 index)
{
	enable_apic(index);
	touch(vcpus[index].next_receipt, vcpus[index].end_receipt);
	if (index < n_senders()) {
		if (params->send_method == STORM_PASSTHROUGH)
			mg_enable_passthrough(vcpus, params->n_vcpus);
		if (params->send_method == STORM_PV_HYPERCALL)
			vcpus[0].vmmcall = has_vmmcall();
		if (by_hyperv())
			mg_enable_hyperv(params,
					 params->pattern == STORM_BROADCAST_SELF ? MG_VECTOR_SELF
										 : MG_VECTOR_TARGET,
					 targets_of(index));
		touch((u64)sends_of(index), (u64)sends_of(index + 1));
		mg_sender_in_user_mode();
	} else if (params->target_state == STORM_HALTED) {
		mg_wait_halted();
	} else if (params->target_state == STORM_RUNNING_KERNEL) {
		mg_wait_kernel();
	} else if (params->target_state == STORM_MASKED) {
		wait_masked(&vcpus[index]);
	} else {
		mg_wait_user();
	}
}
