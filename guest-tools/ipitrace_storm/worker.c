// SPDX-License-Identifier: GPL-2.0-only
/*
 * The workers of a storm: a kernel thread bound to each CPU sends, spins or
 * halts there. Every loop ends when storm->over is set.
 */
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/smp.h>
#include <linux/topology.h>

#include "ipitrace_storm.h"

/* Only the first error is kept. */
void storm_end(struct storm *storm, int error)
{
	if (error)
		cmpxchg(&storm->error, 0, error);
	smp_store_release(&storm->over, true);
	wake_up_all(&storm->wait);
}

bool storm_over(const struct storm *storm)
{
	return smp_load_acquire(&storm->over);
}

static bool acknowledged(const struct storm_cpu *sender)
{
	unsigned int cpu;

	for_each_cpu(cpu, sender->targets) {
		const struct storm_cpu *target = sender->storm->cpu[cpu];

		if (smp_load_acquire(&target->handled) == target->handled_before)
			return false;
	}
	return true;
}

/* The TSC when every acknowledgement was seen, or 0 after a time-out. */
static u64 wait_for_acknowledgement(const struct storm_cpu *sender, u64 deadline)
{
	while (!acknowledged(sender)) {
		if (stamp() > deadline || storm_over(sender->storm))
			return 0;
		cpu_relax();
	}
	return stamp_after(); /* after the load that saw it: the handler's stamp is older */
}

static void wait_for_pace(const struct storm *storm)
{
	const u64 start = stamp() + storm->file.params.pace_cycles;

	do {
		cond_resched();
		cpu_relax();
	} while (stamp() < start && !storm_over(storm));
}

static void send_one(struct storm_cpu *here, u64 seq)
{
	struct storm *storm = here->storm;
	const struct storm_params *params = &storm->file.params;
	struct storm_send *record = &here->sends_log[seq];
	unsigned int cpu;

	for_each_cpu(cpu, here->targets)
		storm->cpu[cpu]->handled_before = READ_ONCE(storm->cpu[cpu]->handled);
	record->seq = seq;
	record->sender = here->cpu;
	record->target = here->route.cpu < nr_cpu_ids && params->pattern != STORM_BROADCAST
				 ? here->route.cpu
				 : STORM_ALL_BUT_SELF;
	if (params->inject == STORM_INJECT_LOST_IPI && seq == params->warmup + params->count / 2)
		send_nothing(record);
	else
		send_timed(here, record);
	record->ack_tsc = wait_for_acknowledgement(here, record->send_tsc + params->timeout_cycles);
	here->sent = seq + 1;
	if (!record->ack_tsc && !storm_over(storm) &&
	    atomic_inc_return(&storm->incomplete) > params->max_incomplete) {
		WRITE_ONCE(storm->gave_up, true);
		storm_end(storm, 0);
	}
}

static void send_all(struct storm_cpu *here)
{
	struct storm *storm = here->storm;
	u64 seq;

	while (atomic_read(&storm->ready) < storm->n_workers && !storm_over(storm)) {
		cond_resched();
		cpu_relax();
	}
	for (seq = 0; seq < storm->total && !storm_over(storm); seq++) {
		wait_for_pace(storm);
		if (storm_over(storm))
			break;
		send_one(here, seq);
	}
	if (atomic_dec_and_test(&storm->senders_left))
		storm_end(storm, 0);
}

static void halt_until_interrupt(struct storm_cpu *here)
{
	local_irq_disable();
	if (storm_over(here->storm) || need_resched()) {
		local_irq_enable();
		return;
	}
	WRITE_ONCE(here->halting, true);
	safe_halt(); /* enables interrupts */
	WRITE_ONCE(here->halting, false);
}

static int work(void *data)
{
	struct storm_cpu *here = data;
	struct storm *storm = here->storm;

	atomic_inc(&storm->ready);
	if (here->sends)
		send_all(here);
	while (!storm_over(storm)) {
		if (storm->file.params.target_state == STORM_HALTED && !here->sends)
			halt_until_interrupt(here);
		else
			cpu_relax();
		cond_resched();
	}
	set_current_state(TASK_INTERRUPTIBLE);
	while (!kthread_should_stop()) {
		schedule();
		set_current_state(TASK_INTERRUPTIBLE);
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

static bool has_worker(const struct storm_cpu *here)
{
	return here->sends || here->storm->file.params.target_state != STORM_RUNNING_USER;
}

int workers_start(struct storm *storm)
{
	unsigned int cpu;

	for_each_cpu(cpu, storm->cpus) {
		struct storm_cpu *here = storm->cpu[cpu];
		struct task_struct *worker;

		if (!has_worker(here))
			continue;
		worker = kthread_create_on_node(work, here, cpu_to_node(cpu), "ipitrace/%u", cpu);
		if (IS_ERR(worker))
			return PTR_ERR(worker);
		kthread_bind(worker, cpu);
		here->worker = worker;
		storm->n_workers++;
	}
	for_each_cpu(cpu, storm->cpus)
		if (storm->cpu[cpu]->worker)
			wake_up_process(storm->cpu[cpu]->worker);
	return 0;
}

static void nothing(void *unused)
{
}

/* Waits until every worker has ended. */
void workers_stop(struct storm *storm)
{
	unsigned int cpu;

	on_each_cpu(nothing, NULL, 1); /* wakes CPUs in HLT */
	for_each_cpu(cpu, storm->cpus)
		if (storm->cpu[cpu]->worker)
			kthread_stop(storm->cpu[cpu]->worker);
}
