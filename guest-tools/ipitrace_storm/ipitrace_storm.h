/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef IPITRACE_STORM_H
#define IPITRACE_STORM_H

#include <linux/cache.h>
#include <linux/cpumask.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "ipitrace_storm_ioctl.h"

#undef pr_fmt
#define pr_fmt(fmt) "ipitrace_storm: " fmt

#define STORM_MAX_SECONDS 600 /* limit of a storm */

struct storm;

/* How a sender sends its IPIs; only the fields of the method are filled in. */
struct storm_route {
	u32 icr_low;
	u32 icr_high; /* in the format of the APIC's mode */
	u32 msr;
	unsigned long pv_low, pv_high, pv_min; /* bitmap of APIC ids, starting at pv_min */
	const struct cpumask *cpus;
	unsigned int cpu; /* the only one in `cpus`, or nr_cpu_ids */
};

/* One CPU of a storm. Its first cache line is what a sender polls. */
struct storm_cpu {
	u64 handled; /* handler entries so far: the acknowledgement */

	/* Accessed only by this CPU. */
	struct storm *storm ____cacheline_aligned_in_smp;
	unsigned int cpu;
	bool sends; /* in a ring, every CPU sends */
	bool halting; /* in HLT, or one instruction before or after it */
	struct task_struct *worker; /* NULL on a CPU that a user task keeps busy */
	struct storm_receipt *receipts;
	u64 capacity; /* of `receipts`; further entries are only counted */
	u64 as_asked;

	/* Accessed only by senders to this CPU. */
	u64 handled_before ____cacheline_aligned_in_smp;
	u64 *descriptor; /* for posting, if the method uses it */

	/* Accessed only by this CPU, as a sender. */
	struct storm_route route ____cacheline_aligned_in_smp; /* of the IPIs this CPU sends */
	cpumask_var_t targets; /* of the IPIs this CPU sends */
	struct storm_send *sends_log;
	u64 sent;
};

struct storm {
	struct storm_file file;
	u64 total; /* sends of each sender, warm-up included */
	cpumask_var_t cpus; /* all senders and targets */
	cpumask_var_t senders;
	unsigned int n_workers;
	struct storm_cpu **cpu; /* [nr_cpu_ids]; NULL for CPUs outside */
	struct storm_send *sends; /* [senders][total], in the order of the CPUs */
	u64 *n_receipts; /* [n_vcpus] */
	atomic_t ready; /* workers in their loop */
	atomic_t incomplete;
	atomic_t senders_left;
	bool gave_up;
	bool over; /* every worker leaves its loop */
	int error; /* why it ended early: -EINTR, -ENODEV, -ETIME, or 0 */
	int lost_cpu; /* for -ENODEV */
	wait_queue_head_t wait; /* for `over` */
};

/* request.c */
int refuse(struct ipitrace_storm_request *request, int error, const char *why, ...) __printf(3, 4);
int request_check(struct ipitrace_storm_request *request);
int request_accept(struct ipitrace_storm_request *request, struct storm **result);

/* records.c */
int records_allocate(struct storm *storm);
void records_finish(struct storm *storm);
const void *records_part(const struct storm *storm, unsigned int part, size_t *size);
void storm_free(struct storm *storm);

/* worker.c */
bool storm_over(const struct storm *storm);
void storm_end(struct storm *storm, int error);
int workers_start(struct storm *storm);
void workers_stop(struct storm *storm);

/* storm.c */
int storm_run(struct ipitrace_storm_request *request, struct storm **result);
int storm_init(void);
void storm_exit(void);

/* receive.c */
extern const char storm_tracepoint[];
void receive_attach(struct storm *storm);
void receive_detach(void);
void receive_smp_call(void *unused);
u64 receive_strays(void);
int receive_init(void);
void receive_exit(void);

/* send.c */
unsigned int send_vector(const struct storm *storm);
bool send_in_x2apic_mode(void);
int send_check(const struct storm_params *params, char *why, size_t size);
int send_prepare(struct storm_cpu *sender);
void send_timed(const struct storm_cpu *sender, struct storm_send *record);
void send_nothing(struct storm_send *record);
bool kvm_feature(unsigned int bit);

/* post.c */
bool post_enabled(void);
int post_prepare(struct storm_cpu *target, u32 apic_id);
void post_forget(struct storm_cpu *target);
void post(u64 *descriptor);

static inline u64 read_msr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}

static __always_inline void write_msr(u32 msr, u32 low, u32 high)
{
	asm volatile("wrmsr" ::"c"(msr), "a"(low), "d"(high) : "memory");
}

/* LFENCE on both sides: RDTSC is not reordered with the code before or after it. */
static __always_inline u64 stamp_before(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

static __always_inline u64 stamp_after(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

static __always_inline u64 stamp(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

#endif
