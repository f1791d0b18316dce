// SPDX-License-Identifier: GPL-2.0-only
/*
 * One storm, from the request to its records.
 *
 * The workers (worker.c) send and wait. The thread that requested the storm
 * waits for its end: everything was sent, too many IPIs were lost, the time is
 * over, the requesting thread was killed, or a CPU is about to go offline (the
 * CPU then waits until the storm has ended).
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/jiffies.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>

#include "ipitrace_storm.h"

static DEFINE_MUTEX(one_storm_at_a_time);
static DEFINE_SPINLOCK(active_lock);
static struct storm *active; /* its CPUs must not go offline while it runs */
static DECLARE_WAIT_QUEUE_HEAD(active_ended);
static enum cpuhp_state hotplug_state;

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
		storm_end(active, -ENODEV);
	}
	spin_unlock(&active_lock);
	wait_event(active_ended, !in_active_storm(cpu));
	return 0;
}

static int why_over(struct ipitrace_storm_request *request, const struct storm *storm)
{
	switch (storm->error) {
	case -ENODEV:
		return refuse(request, -ENODEV, "CPU %d went offline during the storm",
			      storm->lost_cpu);
	case -ETIME:
		return refuse(request, -ETIME, "not done after %d s", STORM_MAX_SECONDS);
	case -EINTR:
		return refuse(request, -EINTR, "interrupted");
	}
	return storm->error;
}

static int run_attached(struct ipitrace_storm_request *request, struct storm *storm)
{
	unsigned int cpu;
	long left;
	int error;

	for_each_cpu(cpu, storm->senders) {
		error = send_prepare(storm->cpu[cpu]);
		if (error == -ERANGE)
			return refuse(
				request, -EOPNOTSUPP,
				"one hypercall cannot address CPUs whose APIC ids differ so much");
		if (error == -ENOMEM)
			return refuse(request, error, "cannot map a posted-interrupt descriptor");
		if (error)
			return refuse(request, error, "a target of CPU %u went offline", cpu);
	}
	error = workers_start(storm);
	if (error)
		storm_end(storm, error);
	/* Here and not in the senders, because other tasks may delay those. */
	left = wait_event_killable_timeout(storm->wait, storm_over(storm), STORM_MAX_SECONDS * HZ);
	if (left <= 0)
		storm_end(storm, left ? -EINTR : -ETIME);
	workers_stop(storm);
	return why_over(request, storm);
}

static int run(struct ipitrace_storm_request *request, struct storm *storm)
{
	const u64 strays = receive_strays();
	int error;

	error = records_allocate(storm);
	if (error)
		return error;
	atomic_set(&storm->senders_left, cpumask_weight(storm->senders));

	/* Check the chosen CPUs again. From here on, a CPU that goes offline ends the storm. */
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
	records_finish(storm);
	storm->file.status.spurious += receive_strays() - strays;
	return 0;
}

/*
 * Runs a storm and returns its records; free them with storm_free(). Errors: those
 * of request_check(); -EBUSY another storm runs; -EINTR killed; -ENODEV a CPU went
 * offline; -ETIME took too long. request->reason has the reason as text.
 */
int storm_run(struct ipitrace_storm_request *request, struct storm **result)
{
	struct storm *storm;
	int error;

	if (!mutex_trylock(&one_storm_at_a_time))
		return refuse(request, -EBUSY, "another storm is running");
	error = request_accept(request, &storm);
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

int storm_init(void)
{
	int state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "ipitrace_storm:online", NULL,
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
