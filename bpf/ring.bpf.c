// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rings and filters; every probe set follows this file in one translation unit.
 * User space sets by -D: N_ROWS, N_RINGS, N_SLOTS (a power of two), HOST_ISA (the
 * isa of kvm_exit if the record does not have it); NEST_GUARD if the kernel lets a program
 * interrupt itself; and for each attached event X: ROW_X, and the definitions that probe.h
 * needs. When it loads the maps, user space sets the number of entries of slots, heads and
 * vcpu_of_tid for the VM's number of vCPUs and the host's threads, and writes the VM's
 * process to our_process: compiled programs fit every VM.
 *
 * Rows below N_RINGS have a ring with slots; the events of other rows are only counted.
 *
 * The weight of these programs is part of what is measured. Maps are arrays, whose look-up the
 * verifier inlines: of the thread's vCPU, of the ring's head, and of the slot.
 *
 * The end of this file has one macro for each kind of probe. A probe whose event is not
 * attached expands to nothing.
 */
#include "ipitrace_events.h"
#include "probe.h"

/* vCPU plus one for each thread of the host, by its tid; 0: not a traced vCPU. */
struct cell {
	u16 vcpu_plus_1[TIDS_PER_CELL];
};

#define MOST_CPUS 8192 /* NR_CPUS_RANGE_END, arch/x86/Kconfig */
#define AT_LEAST_1(n) ((n) + !(n)) /* no map is empty */

BPF_F_TABLE("array", u32, struct ipitrace_event, slots, AT_LEAST_1(N_RINGS *N_SLOTS), MMAPABLE);
BPF_F_TABLE("array", u32, struct ipitrace_head, heads, N_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct cell, vcpu_of_tid, 1, MMAPABLE);
BPF_ARRAY(our_process, u32, 1);
/* vCPU plus one for each CPU on which switches between other threads are recorded; else 0. */
BPF_ARRAY(vcpu_of_cpu, u32, MOST_CPUS);
/* A handler does not interrupt itself, so each CPU's cell has one writer. */
BPF_PERCPU_ARRAY(unattributed, u64, N_ROWS);

static __always_inline bool in_our_process(void)
{
	int at = 0;
	u32 *process = our_process.lookup(&at);

	return process && bpf_get_current_pid_tgid() >> 32 == *process;
}

/* The vCPU of a thread, or -1 if it is not a traced vCPU's. */
static __always_inline int vcpu_of(u32 tid)
{
	u32 at = tid / TIDS_PER_CELL;
	struct cell *cell = vcpu_of_tid.lookup(&at);

	return cell ? cell->vcpu_plus_1[tid % TIDS_PER_CELL] - 1 : -1;
}

static __always_inline int this_vcpu(void)
{
	return vcpu_of(bpf_get_current_pid_tgid());
}

static __always_inline struct ipitrace_head *head_of(u32 vcpu, u32 row)
{
	u32 at = vcpu * N_ROWS + row;

	return heads.lookup(&at);
}

static __always_inline void count(u32 vcpu, u32 row)
{
	struct ipitrace_head *head = head_of(vcpu, row);

	if (head)
		head->counted++;
}

static __always_inline void ignore(u32 row)
{
}

/* Any thread may run this at any time: it needs an atomic add, and makes no record. */
static __always_inline void count_elsewhere(u32 row)
{
	struct ipitrace_head *head;

	if (!in_our_process())
		return;
	head = head_of(0, row);
	if (head)
		__sync_fetch_and_add(&head->elsewhere, 1);
}

/* The context is another task, to which the event may or may not be related. */
static __always_inline void count_unattributed(u32 row)
{
	u64 *n = unattributed.lookup(&row);

	if (n)
		(*n)++;
}

/* False if this runs inside a record of the same ring; where the kernel prevents that, always true. */
static __always_inline bool enter(struct ipitrace_head *head)
{
#ifdef NEST_GUARD
	if (head->busy) {
		head->missed++;
		return false;
	}
	head->busy = 1;
	compiler_barrier();
#endif
	return true;
}

static __always_inline void leave(struct ipitrace_head *head)
{
#ifdef NEST_GUARD
	compiler_barrier();
	head->busy = 0;
#endif
}

static __always_inline void write_slot(struct ipitrace_head *head, u32 ring, u64 arg, u32 word,
				       u16 detail)
{
	u32 slot = ring * N_SLOTS + (head->written & (N_SLOTS - 1));
	struct ipitrace_event *event = slots.lookup(&slot);

	if (!event)
		return;
	event->ts_ns = bpf_ktime_get_ns();
	event->arg = arg;
	event->word = word;
	event->cpu = bpf_get_smp_processor_id();
	event->detail = detail;
	compiler_barrier(); /* x86 keeps stores in order: the record is complete before it is visible */
	head->written++;
}

static __always_inline void record(u32 vcpu, u32 row, u64 arg, u32 word, u16 detail)
{
	struct ipitrace_head *head = head_of(vcpu, row);

	if (!head || !enter(head))
		return;
	if (head->count_only)
		head->counted++;
	else
		write_slot(head, vcpu * N_RINGS + row, arg, word, detail);
	leave(head);
}

#define RECORDER(event, elsewhere, arg, word, detail) \
	PROBE(event) \
	{ \
		int vcpu = this_vcpu(); \
\
		if (vcpu >= 0) \
			record(vcpu, ROW_##event, arg, word, detail); \
		else \
			elsewhere(ROW_##event); \
		return 0; \
	}

#define RECORDER_IF(event, test, arg, word, detail) \
	PROBE(event) \
	{ \
		u64 tested = word; \
		int vcpu; \
\
		if (!test(tested)) \
			return 0; \
		vcpu = this_vcpu(); \
		if (vcpu >= 0) \
			record(vcpu, ROW_##event, arg, tested, detail); \
		return 0; \
	}

/* Record the three values in a vCPU's thread; in any other thread call elsewhere(row). */
#define RECORD_OR(event, elsewhere, arg, word, detail) \
	IF_HAVE(event, RECORDER(event, elsewhere, arg, word, detail))

#define RECORD(event, arg, word, detail) RECORD_OR(event, ignore, arg, word, detail)

/* The same, where test(word) holds. */
#define RECORD_IF(event, test, arg, word, detail) \
	IF_HAVE(event, RECORDER_IF(event, test, arg, word, detail))
