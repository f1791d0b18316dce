// SPDX-License-Identifier: GPL-2.0-only
/*
 * The micro-guest: the smallest x86-64 guest that sends IPIs and stamps them.
 *
 * The VMM starts every vCPU at the payload's first byte in long mode, with
 * identity-mapped memory, GDT, IDT and TSS. vCPU 0 is the sender, all others are
 * targets.
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
#define XAPIC_SVR 0xf0
#define XAPIC_ICR_LOW 0x300
#define XAPIC_ICR_HIGH 0x310
#define SVR_ENABLED 0x100
#define ICR_TO_SELF 0x40000
#define ICR_TO_ALL_BUT_SELF 0xc0000

void mg_wait_halted(void);
void mg_wait_kernel(void);
void mg_open_window(u64 sent);
void mg_wait_user(void);
void mg_sender_in_user_mode(void);
void mg_sender(void);
void mg_main(u32 index);
void mg_exception(u64 vector, u64 error, u64 rip);
void mg_enable_hyperv(const volatile struct storm_params *params, u32 vector);
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

void mg_exception(u64 vector, u64 error, u64 rip)
{
	u64 here;

	asm volatile("mov %%r15, %0" : "=r"(here));
	status->fault_vector = vector;
	status->fault_vcpu = (here - MG_VCPUS) / MG_VCPU_SIZE;
	status->fault_error = error;
	status->fault_rip = rip;
	out_state(STORM_FAULTED);
}

static void enable_apic(void)
{
	if (params->send_method == STORM_XAPIC) {
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

static int by_hyperv(void)
{
	return params->send_method == STORM_HV_HYPERCALL ||
	       params->send_method == STORM_HV_HYPERCALL_EX;
}

/* Whether a send is to all processors, the sender included. */
static int to_all(void)
{
	return params->pattern == STORM_BROADCAST && params->send_method == STORM_HV_HYPERCALL_EX;
}

/* Sends one IPI as described by params, and stamps it. */
static void send(volatile struct storm_send *record)
{
	const int xapic_mode = params->send_method == STORM_XAPIC;
	u32 low = MG_VECTOR_TARGET, high = params->target, msr = X2APIC_ICR;

	record->target = high;
	if (params->pattern == STORM_BROADCAST) {
		record->target = to_all() ? STORM_ALL : STORM_ALL_BUT_SELF;
		low |= ICR_TO_ALL_BUT_SELF;
		high = 0;
	} else if (params->pattern == STORM_SELF) {
		record->target = 0;
		low = MG_VECTOR_SELF | (xapic_mode ? ICR_TO_SELF : 0);
		high = 0;
		msr = X2APIC_SELF_IPI;
	}
	if (params->send_method == STORM_PASSTHROUGH) {
		const u32 first = params->pattern == STORM_UNICAST
					  ? params->target
					  : params->pattern == STORM_BROADCAST;
		timed_post(record, low & 0xff, first,
			   params->pattern == STORM_BROADCAST ? params->n_vcpus - 1 : 1);
	} else if (by_hyperv())
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
	u64 deadline;
	u32 first, last;
	u64 before[MG_MAX_VCPUS];
};

static int acknowledged(const struct wait *wait)
{
	for (u32 i = wait->first; i <= wait->last; i++)
		if (vcpus[i].handled == wait->before[i])
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

/* Sends `count` IPIs, starting at number `seq`; false if too many timed out. */
static int storm(u64 seq, u64 count, int injecting)
{
	const u64 inject_at = seq + count / 2, end = seq + count;
	const u64 ready = params->target_state == STORM_PREEMPTED ? MG_READY_PREEMPTED : MG_READY;
	struct wait wait = {.first = 1, .last = params->n_vcpus - 1};

	if (to_all())
		wait.first = 0;
	else if (params->pattern == STORM_SELF)
		wait.first = wait.last = 0;
	else if (params->pattern == STORM_UNICAST)
		wait.first = wait.last = params->target;

	for (; seq < end; seq++) {
		volatile struct storm_send *record = (struct storm_send *)params->sends + seq;
		u64 start;

		while (vcpus[params->target].ready != ready)
			pause(); /* not yet masked, or preempted, again */
		start = rdtsc() + params->pace_cycles;
		while (rdtsc() < start)
			pause();
		for (u32 i = wait.first; i <= wait.last; i++)
			wait.before[i] = vcpus[i].handled;
		record->seq = seq;
		if (injecting && params->inject && seq == inject_at)
			inject(record);
		else
			send(record);
		record->ack_tsc =
			wait_for_acknowledgement(&wait, record->send_tsc + params->timeout_cycles);
		status->incomplete += !record->ack_tsc;
		status->sent = seq + 1;
		if (status->incomplete > params->max_incomplete)
			return 0;
	}
	return 1;
}

/* The sender's main function, in user mode. */
void mg_sender(void)
{
	for (u32 i = 1; i < params->n_vcpus; i++)
		while (!vcpus[i].ready)
			pause();
	report(STORM_WARMING_UP);
	if (storm(0, params->warmup, 0)) {
		report(STORM_MEASURING);
		report(storm(params->warmup, params->count, 1) ? STORM_DONE : STORM_GAVE_UP);
	} else {
		report(STORM_GAVE_UP);
	}
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
	const u64 sends = params->sends;

	enable_apic();
	touch(vcpus[index].next_receipt, vcpus[index].end_receipt);
	if (index == 0) {
		if (params->send_method == STORM_PASSTHROUGH)
			mg_enable_passthrough(vcpus, params->n_vcpus);
		else if (by_hyperv())
			mg_enable_hyperv(params, to_all() ? MG_VECTOR_SELF : MG_VECTOR_TARGET);
		touch(sends, sends + (params->warmup + params->count) * sizeof(struct storm_send));
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
