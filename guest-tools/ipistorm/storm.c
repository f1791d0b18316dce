// SPDX-License-Identifier: GPL-2.0-only
/*
 * One storm, from the request to its records.
 *
 * A kernel thread bound to each CPU that takes part sends, spins or halts
 * there; the thread that asked for the storm waits. Every loop ends when
 * storm->over is set: all was sent, too many IPIs were lost, the time is up, the
 * asking thread was killed, or one of the CPUs is about to go offline (then the
 * CPU waits until the storm has ended, not the other way round).
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include <asm/tsc.h>

#include "ipistorm.h"

#define MAX_SECONDS 600 /* of a storm */
#define MAX_TIMEOUT_SECONDS 10 /* for one IPI */
#define MAX_SENDS 10000000ULL
#define MAX_INCOMPLETE 1000
#define MAX_BURN_CYCLES 1000000 /* interrupts are off in the handler */

static DEFINE_MUTEX(one_storm_at_a_time);
static DEFINE_SPINLOCK(active_lock);
static struct storm *active; /* whose CPUs must not go offline under it */
static DECLARE_WAIT_QUEUE_HEAD(active_ended);
static enum cpuhp_state hotplug_state;

static __printf(3, 4) int refuse(struct ipistorm_request *request, int error, const char *why, ...)
{
	va_list arguments;

	va_start(arguments, why);
	vsnprintf(request->reason, sizeof(request->reason), why, arguments);
	va_end(arguments);
	return error;
}

static u64 cycles(u64 seconds)
{
	return seconds * tsc_khz * 1000;
}

static int check_numbers(struct ipistorm_request *request)
{
	const struct storm_params *params = &request->params;
	const u64 total = params->warmup + params->count;

	if (params->abi_version != STORM_ABI_VERSION)
		return refuse(request, -EINVAL, "the module speaks version %u of storm_abi.h, not %u",
			      STORM_ABI_VERSION, params->abi_version);
	if (params->pattern > STORM_RING)
		return refuse(request, -EINVAL, "there is no pattern %u", params->pattern);
	if (params->target_state > STORM_HALTED)
		return refuse(request, -EINVAL, "there is no target state %u",
			      params->target_state);
	if (params->send_method > STORM_SMP_CALL)
		return refuse(request, -EINVAL, "there is no send method %u", params->send_method);
	if (params->inject > STORM_INJECT_LOST_IPI)
		return refuse(request, -EINVAL, "this module cannot inject fault %u",
			      params->inject);
	if (params->n_vcpus || params->sends || params->reserved)
		return refuse(request, -EINVAL, "n_vcpus, sends and reserved must be 0");
	if (!params->count || params->count > MAX_SENDS || params->warmup > MAX_SENDS ||
	    total > MAX_SENDS)
		return refuse(request, -EINVAL, "count must be 1 to %llu, warm-up included",
			      MAX_SENDS);
	if (params->max_incomplete > MAX_INCOMPLETE)
		return refuse(request, -EINVAL, "max_incomplete must be at most %d", MAX_INCOMPLETE);
	if (params->handler_burn_cycles > MAX_BURN_CYCLES)
		return refuse(request, -EINVAL, "a handler may burn at most %d cycles",
			      MAX_BURN_CYCLES);
	if (!params->timeout_cycles || params->timeout_cycles > cycles(MAX_TIMEOUT_SECONDS))
		return refuse(request, -EINVAL, "timeout must be 1 to %llu cycles (%d s)",
			      cycles(MAX_TIMEOUT_SECONDS), MAX_TIMEOUT_SECONDS);
	if (params->pace_cycles > div64_u64(cycles(MAX_SECONDS), total))
		return refuse(request, -EINVAL, "a pace of %llu cycles makes %llu IPIs take more than %d s",
			      params->pace_cycles, total, MAX_SECONDS);
	return 0;
}

static int check_cpu(struct ipistorm_request *request, const char *role, unsigned int cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return refuse(request, -EINVAL, "%s: there is no CPU %u", role, cpu);
	if (!cpu_online(cpu))
		return refuse(request, -ENXIO, "%s: CPU %u is offline", role, cpu);
	return 0;
}

/* Which CPUs take part. Under cpus_read_lock(), since it depends on who is online. */
static int choose_cpus(struct ipistorm_request *request, struct storm *storm)
{
	const struct storm_params *params = &request->params;
	int error;

	if (params->pattern == STORM_RING) {
		cpumask_copy(storm->cpus, cpu_online_mask);
		cpumask_copy(storm->senders, cpu_online_mask);
	} else {
		error = check_cpu(request, "sender", params->sender);
		if (error)
			return error;
		cpumask_set_cpu(params->sender, storm->senders);
		cpumask_set_cpu(params->sender, storm->cpus);
	}
	if (params->pattern == STORM_UNICAST) {
		error = check_cpu(request, "target", params->target);
		if (error)
			return error;
		if (params->target == params->sender)
			return refuse(request, -EINVAL, "unicast: sender and target are both CPU %u (pattern self does that)",
				      params->sender);
		cpumask_set_cpu(params->target, storm->cpus);
	} else if (params->pattern == STORM_BROADCAST) {
		cpumask_copy(storm->cpus, cpu_online_mask);
	}
	if (params->pattern != STORM_SELF && cpumask_weight(storm->cpus) < 2)
		return refuse(request, -ENXIO, "only one CPU is online");
	if (params->target_state == STORM_HALTED &&
	    (params->pattern == STORM_SELF || params->pattern == STORM_RING))
		return refuse(request, -EOPNOTSUPP, "%s: the targets send, so they cannot be in HLT",
			      params->pattern == STORM_SELF ? "self" : "ring");
	return send_check(params, storm->cpus, request->reason, sizeof(request->reason));
}

static u64 memory_needed(const struct storm *storm)
{
	const u64 senders = cpumask_weight(storm->senders), cpus = cpumask_weight(storm->cpus);

	return storm->total *
	       (senders * sizeof(struct storm_send) + cpus * sizeof(struct storm_receipt));
}

static int check_memory(struct ipistorm_request *request, const struct storm *storm)
{
	const u64 needed = memory_needed(storm);
	const u64 allowed = (u64)max(si_mem_available(), 0L) * PAGE_SIZE / 2;

	if (needed > allowed)
		return refuse(request, -ENOMEM, "the records take %llu MiB, and half of the memory available is %llu MiB",
			      needed >> 20, allowed >> 20);
	return 0;
}

static bool receives(const struct storm *storm, unsigned int cpu)
{
	const struct storm_params *params = &storm->file.params;

	return params->pattern == STORM_RING || params->pattern == STORM_SELF ||
	       cpu != params->sender;
}

static void choose_targets(struct storm_cpu *sender)
{
	const struct storm *storm = sender->storm;
	unsigned int next;

	switch (storm->file.params.pattern) {
	case STORM_UNICAST:
		cpumask_set_cpu(storm->file.params.target, sender->targets);
		break;
	case STORM_SELF:
		cpumask_set_cpu(sender->cpu, sender->targets);
		break;
	case STORM_BROADCAST:
		cpumask_copy(sender->targets, storm->cpus);
		cpumask_clear_cpu(sender->cpu, sender->targets);
		break;
	case STORM_RING:
		next = cpumask_next(sender->cpu, storm->cpus);
		if (next >= nr_cpu_ids)
			next = cpumask_first(storm->cpus);
		cpumask_set_cpu(next, sender->targets);
		break;
	}
}

static struct storm_cpu *make_cpu(struct storm *storm, unsigned int cpu)
{
	struct storm_cpu *here =
		kzalloc_node(sizeof(*here), GFP_KERNEL, cpu_to_node(cpu));

	if (!here)
		return NULL;
	storm->cpu[cpu] = here; /* storm_free() takes it from here */
	here->storm = storm;
	here->cpu = cpu;
	here->sends = cpumask_test_cpu(cpu, storm->senders);
	if (!zalloc_cpumask_var(&here->targets, GFP_KERNEL))
		return NULL;
	if (here->sends)
		choose_targets(here);
	if (receives(storm, cpu)) {
		here->capacity = storm->total;
		here->receipts = vzalloc_node(storm->total * sizeof(*here->receipts),
					      cpu_to_node(cpu));
		if (!here->receipts)
			return NULL;
	}
	return here;
}

static int allocate(struct storm *storm)
{
	struct storm_send *log;
	unsigned int cpu;

	storm->file.n_vcpus = cpumask_last(storm->cpus) + 1;
	storm->cpu = kcalloc(nr_cpu_ids, sizeof(*storm->cpu), GFP_KERNEL);
	storm->n_receipts = kcalloc(storm->file.n_vcpus, sizeof(*storm->n_receipts), GFP_KERNEL);
	log = vzalloc(cpumask_weight(storm->senders) * storm->total * sizeof(*log));
	storm->sends = log;
	if (!storm->cpu || !storm->n_receipts || !log)
		return -ENOMEM;
	for_each_cpu(cpu, storm->cpus) {
		struct storm_cpu *here = make_cpu(storm, cpu);

		if (!here)
			return -ENOMEM;
		if (!here->sends)
			continue;
		here->sends_log = log;
		log += storm->total;
	}
	return 0;
}

void storm_free(struct storm *storm)
{
	unsigned int cpu;

	if (!storm)
		return;
	for (cpu = 0; storm->cpu && cpu < nr_cpu_ids; cpu++) {
		if (!storm->cpu[cpu])
			continue;
		vfree(storm->cpu[cpu]->receipts);
		free_cpumask_var(storm->cpu[cpu]->targets);
		kfree(storm->cpu[cpu]);
	}
	kfree(storm->cpu);
	kfree(storm->n_receipts);
	vfree(storm->sends);
	free_cpumask_var(storm->senders);
	free_cpumask_var(storm->cpus);
	kfree(storm);
}

static struct storm *make_storm(const struct storm_params *params)
{
	struct storm *storm = kzalloc(sizeof(*storm), GFP_KERNEL);

	if (!storm)
		return NULL;
	storm->file.params = *params;
	storm->total = params->warmup + params->count;
	init_waitqueue_head(&storm->wait);
	if (zalloc_cpumask_var(&storm->cpus, GFP_KERNEL) &&
	    zalloc_cpumask_var(&storm->senders, GFP_KERNEL))
		return storm;
	storm_free(storm);
	return NULL;
}

/* The first error is the one that counts. */
static void end_storm(struct storm *storm, int error)
{
	if (error)
		cmpxchg(&storm->error, 0, error);
	smp_store_release(&storm->over, true);
	wake_up_all(&storm->wait);
}

static bool over(const struct storm *storm)
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

/* The TSC when every acknowledgement had been seen, or 0 if that was too late. */
static u64 wait_for_acknowledgement(const struct storm_cpu *sender, u64 deadline)
{
	while (!acknowledged(sender)) {
		if (stamp() > deadline || over(sender->storm))
			return 0;
		cpu_relax();
	}
	return stamp();
}

static void wait_for_pace(const struct storm *storm)
{
	const u64 start = stamp() + storm->file.params.pace_cycles;

	do {
		cond_resched();
		cpu_relax();
	} while (stamp() < start && !over(storm));
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
	record->target = here->route.cpu < nr_cpu_ids && params->pattern != STORM_BROADCAST ?
				 here->route.cpu :
				 STORM_ALL_BUT_SELF;
	if (params->inject == STORM_INJECT_LOST_IPI && seq == params->warmup + params->count / 2)
		send_nothing(record);
	else
		send_timed(here, record);
	record->ack_tsc =
		wait_for_acknowledgement(here, record->send_tsc + params->timeout_cycles);
	here->sent = seq + 1;
	if (!record->ack_tsc && !over(storm) &&
	    atomic_inc_return(&storm->incomplete) > params->max_incomplete) {
		WRITE_ONCE(storm->gave_up, true);
		end_storm(storm, 0);
	}
}

static void send_all(struct storm_cpu *here)
{
	struct storm *storm = here->storm;
	u64 seq;

	while (atomic_read(&storm->ready) < storm->n_workers && !over(storm)) {
		cond_resched();
		cpu_relax();
	}
	for (seq = 0; seq < storm->total && !over(storm); seq++) {
		wait_for_pace(storm);
		if (over(storm))
			break;
		if (time_after(jiffies, storm->end_jiffies))
			end_storm(storm, -ETIME);
		else
			send_one(here, seq);
	}
	if (atomic_dec_and_test(&storm->senders_left))
		end_storm(storm, 0);
}

static void halt_until_interrupt(struct storm_cpu *here)
{
	local_irq_disable();
	if (over(here->storm) || need_resched()) {
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
	while (!over(storm)) {
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

static int start_workers(struct storm *storm)
{
	unsigned int cpu;

	for_each_cpu(cpu, storm->cpus) {
		struct storm_cpu *here = storm->cpu[cpu];
		struct task_struct *worker;

		if (!has_worker(here))
			continue;
		worker = kthread_create_on_node(work, here, cpu_to_node(cpu), "ipistorm/%u", cpu);
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

/* Returns when every worker has ended. */
static void stop_workers(struct storm *storm)
{
	unsigned int cpu;

	on_each_cpu(nothing, NULL, 1); /* out of HLT */
	for_each_cpu(cpu, storm->cpus)
		if (storm->cpu[cpu]->worker)
			kthread_stop(storm->cpu[cpu]->worker);
}

static void set_active(struct storm *storm)
{
	spin_lock(&active_lock);
	active = storm;
	spin_unlock(&active_lock);
	wake_up_all(&active_ended);
}

static bool in_active_storm(unsigned int cpu)
{
	bool in;

	spin_lock(&active_lock);
	in = active && cpumask_test_cpu(cpu, active->cpus);
	spin_unlock(&active_lock);
	return in;
}

/* A CPU is about to go offline: its storm ends first. */
static int cpu_goes_offline(unsigned int cpu)
{
	spin_lock(&active_lock);
	if (active && cpumask_test_cpu(cpu, active->cpus)) {
		WRITE_ONCE(active->lost_cpu, cpu);
		end_storm(active, -ENODEV);
	}
	spin_unlock(&active_lock);
	wait_event(active_ended, !in_active_storm(cpu));
	return 0;
}

static int why_over(struct ipistorm_request *request, const struct storm *storm)
{
	switch (storm->error) {
	case -ENODEV:
		return refuse(request, -ENODEV, "CPU %d went offline during the storm",
			      storm->lost_cpu);
	case -ETIME:
		return refuse(request, -ETIME, "not done after %d s", MAX_SECONDS);
	case -EINTR:
		return refuse(request, -EINTR, "interrupted");
	}
	return storm->error;
}

/* Puts the counts where storm_part() shows them. */
static void finish(struct storm *storm)
{
	struct storm_file *file = &storm->file;
	struct storm_status *status = &file->status;
	unsigned int cpu;

	memcpy(file->magic, STORM_FILE_MAGIC, sizeof(file->magic));
	file->abi_version = STORM_ABI_VERSION;
	file->header_bytes = sizeof(*file);
	file->vector = send_vector(storm);
	file->tsc_khz = tsc_khz;
	file->n_sends = cpumask_weight(storm->senders) * storm->total;
	file->params.n_vcpus = file->n_vcpus;
	status->state = storm->gave_up ? STORM_GAVE_UP : STORM_DONE;
	status->incomplete = atomic_read(&storm->incomplete);
	for_each_cpu(cpu, storm->cpus) {
		const struct storm_cpu *here = storm->cpu[cpu];

		status->sent += here->sent;
		status->as_asked += here->as_asked;
		status->spurious += here->handled - min(here->handled, here->capacity);
		storm->n_receipts[cpu] = min(here->handled, here->capacity);
	}
}

static int run_attached(struct ipistorm_request *request, struct storm *storm)
{
	unsigned int cpu;
	int error;

	for_each_cpu(cpu, storm->senders) {
		error = send_prepare(storm->cpu[cpu]);
		if (error == -ERANGE)
			return refuse(request, -EOPNOTSUPP, "one hypercall cannot name CPUs whose APIC ids lie so far apart");
		if (error)
			return refuse(request, error, "a target of CPU %u went offline", cpu);
	}
	error = start_workers(storm);
	if (error)
		end_storm(storm, error);
	if (wait_event_killable(storm->wait, over(storm)))
		end_storm(storm, -EINTR);
	stop_workers(storm);
	return why_over(request, storm);
}

static int run(struct ipistorm_request *request, struct storm *storm)
{
	const u64 strays = receive_strays();
	int error;

	error = allocate(storm);
	if (error)
		return error;
	atomic_set(&storm->senders_left, cpumask_weight(storm->senders));
	storm->end_jiffies = jiffies + MAX_SECONDS * HZ;

	/* Still those that were chosen? From here on a CPU that leaves ends the storm. */
	cpus_read_lock();
	if (!cpumask_subset(storm->cpus, cpu_online_mask)) {
		cpus_read_unlock();
		return refuse(request, -ENODEV, "a CPU of the storm went offline");
	}
	receive_attach(storm);
	set_active(storm);
	cpus_read_unlock();

	error = run_attached(request, storm);
	set_active(NULL);
	receive_detach();
	if (error)
		return error;
	finish(storm);
	storm->file.status.spurious += receive_strays() - strays;
	return 0;
}

static int prepare(struct ipistorm_request *request, struct storm **result)
{
	struct storm *storm;
	int error;

	error = check_numbers(request);
	if (error)
		return error;
	storm = make_storm(&request->params);
	if (!storm)
		return -ENOMEM;
	cpus_read_lock();
	error = choose_cpus(request, storm);
	cpus_read_unlock();
	if (!error)
		error = check_memory(request, storm);
	if (error)
		storm_free(storm);
	else
		*result = storm;
	return error;
}

/* Would this storm be run? Else says why not, in request->reason. */
int storm_check(struct ipistorm_request *request)
{
	struct storm *storm;
	int error = prepare(request, &storm);

	if (!error)
		storm_free(storm);
	return error;
}

/*
 * Runs a storm and hands over its records, storm_free() them. Errors: what
 * storm_check() says; -EBUSY another storm runs; -EINTR killed; -ENODEV a CPU
 * went offline; -ETIME took too long. request->reason says so in words.
 */
int storm_run(struct ipistorm_request *request, struct storm **result)
{
	struct storm *storm;
	int error;

	if (!mutex_trylock(&one_storm_at_a_time))
		return refuse(request, -EBUSY, "another storm is running");
	error = prepare(request, &storm);
	if (!error) {
		error = run(request, storm);
		if (error)
			storm_free(storm);
		else
			*result = storm;
	}
	mutex_unlock(&one_storm_at_a_time);
	return error;
}

/* The parts of a storm's file, one after the other; NULL behind the last. */
const void *storm_part(const struct storm *storm, unsigned int part, size_t *size)
{
	unsigned int cpu;

	switch (part) {
	case 0:
		*size = sizeof(storm->file);
		return &storm->file;
	case 1:
		*size = storm->file.n_sends * sizeof(*storm->sends);
		return storm->sends;
	case 2:
		*size = storm->file.n_vcpus * sizeof(*storm->n_receipts);
		return storm->n_receipts;
	}
	cpu = part - 3;
	if (cpu >= storm->file.n_vcpus)
		return NULL;
	*size = storm->n_receipts[cpu] * sizeof(struct storm_receipt);
	return *size ? storm->cpu[cpu]->receipts : (const void *)"";
}

int storm_init(void)
{
	int state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "ipistorm:online", NULL,
					      cpu_goes_offline);

	if (state < 0)
		return state;
	hotplug_state = state;
	return 0;
}

void storm_exit(void)
{
	cpuhp_remove_state_nocalls(hotplug_state);
}
