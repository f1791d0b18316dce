// SPDX-License-Identifier: GPL-2.0-only
/*
 * A payload in the micro-guest's place that lies. Its `honest` mode sends no IPI at all but
 * makes up records that could be true; every other mode differs from it in one thing. All of
 * it runs in kernel mode, on tables that the VMM made.
 */
#include "storm_abi.h"
#include "microguest.h"

typedef unsigned int u32;
typedef unsigned long long u64;

/* The test reads these names and puts the number of one behind the marker. */
enum mode {
	honest,
	absurd_while_running,
	params_overwritten,
	sent_huge,
	sent_zero,
	sent_one_more,
	incomplete_huge,
	progress_forever,
	progress_to_and_fro,
	progress_in_drips,
	done_at_once,
	done_without_measuring,
	done_without_records,
	done_by_a_target,
	done_in_warm_up,
	warming_up_for_ever,
	fault_made_up,
	gave_up_made_up,
	log_ends_at_zero,
	log_ends_beyond,
	log_ends_between_records,
	log_ends_in_anothers,
	sender_has_a_log,
	handled_none,
	handled_too_many,
	stamps_zero,
	stamps_overflow,
	stamps_alike,
	stamps_far_apart,
	send_ends_before_it_begins,
	acknowledged_before_it_was_handled,
	never_acknowledged,
	handled_before_all,
	eoi_before_handler,
	numbers_alike,
	handlers_numbered_alike,
	wrong_target,
	wrong_sender,
	changed_after_done,
	to_and_fro_until_the_end,
	triple_fault,
	page_tables_overwritten,
	all_memory_overwritten,
	endless_loop,
	halted_for_good,
	memory_hole_read,
	memory_hole_entered,
	unmapped_read,
	port_unknown,
	port_read,
	port_wide,
	port_string,
	state_unknown,
	tsc_set_back,
	init_to_the_target,
};

/* In the image, behind its marker. */
extern const volatile u32 chosen_mode;

asm(".section .head, \"ax\"\n"
    ".globl _start\n"
    "_start: jmp 1f\n"
    ".balign 8\n"
    ".ascii \"ipitrace\"\n"
    ".long 2\n" /* STORM_ABI_VERSION; see the assertion below */
    ".long stuck - _start, stuck - _start, stuck - _start, stuck - _start\n"
    ".long stuck - _start, stuck - _start, stuck - _start\n"
    ".long payload_end - _start\n"
    ".ascii \"MODEMODE\"\n"
    "chosen_mode: .long 0\n"
    "1: call run\n"
    ".balign 16\n"
    "stuck: jmp stuck\n"
    ".text\n");
_Static_assert(STORM_ABI_VERSION == 2, "the header above says it");

static volatile struct storm_params *const params = (void *)MG_PARAMS;
static volatile struct storm_status *const status = (void *)MG_STATUS;
static volatile struct mg_vcpu *const vcpus = (void *)MG_VCPUS;

static inline u64 rdtsc(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u32 low, u32 high)
{
	asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high) : "memory");
}

static void out(u32 port, u32 value)
{
	asm volatile("outb %b0, %w1" ::"a"(value), "d"(port) : "memory");
}

static void report(u32 state)
{
	status->state = state;
	out(MG_PORT, state);
}

static void wait(u64 cycles)
{
	const u64 end = rdtsc() + cycles;

	while (rdtsc() < end)
		asm volatile("pause");
}

static void for_ever(void)
{
	for (;;)
		asm volatile("pause");
}

/* What a storm would have left of one send. */
static void make_up(u32 mode, u64 seq)
{
	volatile struct storm_send *send = (struct storm_send *)params->sends + seq;
	volatile struct storm_receipt *receipt = (void *)vcpus[1].next_receipt;
	u64 now;

	wait(params->pace_cycles + 2000);
	send->seq = mode == numbers_alike ? 0 : seq;
	send->target = mode == wrong_target ? 9 : 1;
	send->sender = mode == wrong_sender ? 1 : 0;
	send->send_tsc = rdtsc();
	send->sent_tsc = rdtsc();
	receipt->handler_tsc = rdtsc();
	receipt->eoi_tsc = rdtsc();
	receipt->seq = mode == handlers_numbered_alike ? 0 : seq;
	send->ack_tsc = rdtsc();
	now = send->send_tsc;
	switch (mode) {
	case stamps_zero:
		send->send_tsc = send->sent_tsc = 0;
		break;
	case stamps_overflow:
		send->ack_tsc = ~0ull;
		break;
	case stamps_alike:
		send->send_tsc = send->sent_tsc = send->ack_tsc = 1000;
		receipt->handler_tsc = receipt->eoi_tsc = 1000;
		break;
	case stamps_far_apart:
		send->send_tsc = seq << 40 | 1;
		send->sent_tsc = receipt->handler_tsc = receipt->eoi_tsc = send->send_tsc + 1000;
		send->ack_tsc = send->send_tsc + 2000;
		break;
	case send_ends_before_it_begins:
		send->sent_tsc = now - 500;
		break;
	case acknowledged_before_it_was_handled:
		receipt->handler_tsc = send->ack_tsc + 300;
		receipt->eoi_tsc = send->ack_tsc + 400;
		break;
	case never_acknowledged:
		send->ack_tsc = 0;
		break;
	case handled_before_all:
		receipt->handler_tsc = receipt->eoi_tsc = seq + 1;
		break;
	case eoi_before_handler:
		receipt->eoi_tsc = now;
		break;
	}
	vcpus[1].next_receipt += sizeof(*receipt);
	vcpus[1].handled++;
	status->sent = seq + 1;
}

static void scribble(u64 from, u64 to)
{
	for (u64 at = from; at < to; at += 8)
		*(volatile u64 *)at = 0x5a5a5a5a5a5a5a5aull;
}

/* What is not made of records: never comes back. */
static void misbehave(u32 mode)
{
	static const u64 none[2];

	switch (mode) {
	case done_at_once:
		report(STORM_DONE);
		break;
	case warming_up_for_ever:
		for (;;)
			report(STORM_WARMING_UP);
	case fault_made_up:
		status->fault_vector = status->fault_vcpu = ~0u;
		status->fault_rip = status->fault_error = status->sent = ~0ull;
		report(STORM_FAULTED);
		break;
	case gave_up_made_up:
		report(STORM_WARMING_UP);
		status->incomplete = ~0u;
		report(STORM_GAVE_UP);
		break;
	case progress_forever:
		report(STORM_WARMING_UP);
		for (;;)
			status->sent++;
	case progress_to_and_fro:
		report(STORM_WARMING_UP);
		for (;;) {
			status->sent = 1;
			wait(100000000);
			status->sent = 2;
			wait(100000000);
		}
	case progress_in_drips:
		report(STORM_WARMING_UP);
		for (;;) {
			status->sent++;
			wait(3000000000ull);
		}
	case triple_fault:
		asm volatile("lidt %0; ud2" ::"m"(none));
		break;
	case page_tables_overwritten:
		scribble(0x1000, 0x5000);
		wrmsr(0x10, 0, 0);
		*(volatile u64 *)0x100000 = 0;
		break;
	case all_memory_overwritten:
		scribble(0x20000, 0x200000);
		scribble(0, 0x10000);
		break;
	case halted_for_good:
		asm volatile("cli; hlt");
		break;
	case memory_hole_read:
		*(volatile u64 *)MG_DESCRIPTORS = 1;
		break;
	case memory_hole_entered:
		asm volatile("jmp *%0" ::"r"((u64)MG_DESCRIPTORS));
		break;
	case unmapped_read:
		*(volatile u64 *)0x123456789000ull = 1;
		break;
	case port_unknown:
		for (;;)
			out(0x80, 0);
	case port_read:
		asm volatile("inb %w0, %%al" ::"d"(MG_PORT) : "al");
		break;
	case port_wide:
		asm volatile("outl %0, %w1" ::"a"(STORM_WARMING_UP), "d"(MG_PORT));
		break;
	case port_string:
		asm volatile("rep outsb" ::"S"(MG_PARAMS), "c"(4096), "d"(MG_PORT) : "memory");
		break;
	case state_unknown:
		out(MG_PORT, 0x77);
		break;
	case init_to_the_target:
		wrmsr(0x80f, 0x1ff, 0);
		for (;;)
			wrmsr(0x830, 0x4500, 1);
	}
	for_ever();
}

static void spoil(u32 mode)
{
	switch (mode) {
	case sent_huge:
		status->sent = ~0ull;
		break;
	case sent_zero:
		status->sent = 0;
		break;
	case sent_one_more:
		status->sent++;
		break;
	case incomplete_huge:
		status->incomplete = ~0u;
		break;
	case log_ends_at_zero:
		vcpus[1].next_receipt = 0;
		break;
	case log_ends_beyond:
		vcpus[1].next_receipt = ~0ull;
		break;
	case log_ends_between_records:
		vcpus[1].next_receipt -= 12;
		break;
	case log_ends_in_anothers:
		vcpus[1].next_receipt = vcpus[0].next_receipt;
		break;
	case sender_has_a_log:
		((struct storm_receipt *)vcpus[0].next_receipt)->handler_tsc = rdtsc();
		vcpus[0].next_receipt += sizeof(struct storm_receipt);
		vcpus[0].handled = 1;
		break;
	case handled_none:
		vcpus[1].handled = 0;
		break;
	case handled_too_many:
		vcpus[1].handled = ~0ull;
		break;
	}
}

static void absurd(void)
{
	status->sent = status->fault_rip = status->spurious = ~0ull;
	status->incomplete = ~0u;
	wait(100000000); /* so that the VMM sees it */
	status->incomplete = 0;
}

static void storm(u32 mode)
{
	const u64 warmup = params->warmup, total = warmup + params->count;

	report(STORM_WARMING_UP);
	if (mode == done_without_measuring)
		report(STORM_DONE);
	for (u64 seq = 0; seq < total; seq++) {
		if (seq == warmup && mode != done_in_warm_up)
			report(STORM_MEASURING);
		if (seq == warmup && mode == absurd_while_running)
			absurd();
		if (seq == warmup + 3 && mode == tsc_set_back)
			wrmsr(0x10, 1000, 0);
		if (mode == done_without_records)
			status->sent = seq + 1;
		else
			make_up(mode, seq);
	}
	spoil(mode);
	if (mode == params_overwritten)
		scribble(MG_PARAMS, MG_PARAMS + sizeof(struct storm_params));
	if (mode != done_by_a_target)
		report(STORM_DONE);
	status->state = 99; /* for the target to see, where it reports */
	for_ever();
}

static void target(u32 mode)
{
	switch (mode) {
	case done_by_a_target:
		while (status->state != 99)
			asm volatile("pause");
		out(MG_PORT, STORM_DONE);
		break;
	case changed_after_done:
		while (status->state != STORM_DONE)
			asm volatile("pause");
		scribble(MG_VCPUS, MG_VCPUS + 2 * MG_VCPU_SIZE);
		scribble(params->sends, params->sends + 32 * (params->warmup + params->count));
		break;
	case to_and_fro_until_the_end:
		for (;;) {
			const u64 incomplete = status->incomplete;

			status->spurious = ~0ull;
			status->incomplete = ~0u;
			vcpus[0].handled = ~0ull;
			vcpus[0].handled = 0;
			status->incomplete = incomplete & 1;
			status->spurious = 0;
		}
	case triple_fault:
	case endless_loop:
	case init_to_the_target:
		break;
	case halted_for_good:
		asm volatile("cli; hlt");
	}
	for_ever();
}

__attribute__((used, noreturn)) void run(u32 index)
{
	const u32 mode = chosen_mode;

	if (index)
		target(mode);
	else if ((mode >= progress_forever && mode <= done_at_once) ||
		 (mode >= warming_up_for_ever && mode <= gave_up_made_up) ||
		 (mode >= triple_fault && mode != tsc_set_back))
		misbehave(mode);
	else
		storm(mode);
	for_ever();
	__builtin_unreachable();
}
