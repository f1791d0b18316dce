// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request to the module: checks of its parameters, and its CPUs. All requests
 * are accepted or refused here; a refusal has its reason as text.
 */
#include <linux/cpu.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <asm/tsc.h>

#include "ipitrace_storm.h"

#define MAX_TIMEOUT_SECONDS 10 /* for one IPI */
#define MAX_SENDS 10000000ULL
#define MAX_INCOMPLETE 1000
#define MAX_BURN_CYCLES 1000000 /* interrupts are off in the handler */

/* Formats the reason into the request; returns `error`. */
int refuse(struct ipitrace_storm_request *request, int error, const char *why, ...)
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

static int check_numbers(struct ipitrace_storm_request *request)
{
	const struct storm_params *params = &request->params;
	const u64 total = params->warmup + params->count;

	if (params->abi_version != STORM_ABI_VERSION)
		return refuse(request, -EINVAL, "the module has version %u of storm_abi.h, not %u",
			      STORM_ABI_VERSION, params->abi_version);
	if (params->pattern > STORM_RING)
		return refuse(request, -EINVAL, "there is no pattern %u", params->pattern);
	if (params->target_state > STORM_HALTED)
		return refuse(request, -EINVAL, "this module has no target state %u",
			      params->target_state);
	if (params->send_method > STORM_SMP_CALL)
		return refuse(request, -EINVAL, "there is no send method %u", params->send_method);
	if (params->inject > STORM_INJECT_LOST_IPI)
		return refuse(request, -EINVAL, "this module cannot inject fault %u",
			      params->inject);
	if (params->n_vcpus || params->sends || params->target_mask)
		return refuse(request, -EINVAL, "n_vcpus, sends and target_mask must be 0");
	if (!params->count || params->count > MAX_SENDS || params->warmup > MAX_SENDS ||
	    total > MAX_SENDS)
		return refuse(request, -EINVAL, "count must be 1 to %llu, warm-up included",
			      MAX_SENDS);
	if (params->max_incomplete > MAX_INCOMPLETE)
		return refuse(request, -EINVAL, "max_incomplete must be at most %d",
			      MAX_INCOMPLETE);
	if (params->handler_burn_cycles > MAX_BURN_CYCLES)
		return refuse(request, -EINVAL, "a handler may burn at most %d cycles",
			      MAX_BURN_CYCLES);
	if (!params->timeout_cycles || params->timeout_cycles > cycles(MAX_TIMEOUT_SECONDS))
		return refuse(request, -EINVAL, "timeout must be 1 to %llu cycles (%d s)",
			      cycles(MAX_TIMEOUT_SECONDS), MAX_TIMEOUT_SECONDS);
	if (params->pace_cycles > div64_u64(cycles(STORM_MAX_SECONDS), total))
		return refuse(request, -EINVAL,
			      "a pace of %llu cycles makes %llu IPIs take more than %d s",
			      params->pace_cycles, total, STORM_MAX_SECONDS);
	return 0;
}

static int check_cpu(struct ipitrace_storm_request *request, const char *role, unsigned int cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return refuse(request, -EINVAL, "%s: there is no CPU %u", role, cpu);
	if (!cpu_online(cpu))
		return refuse(request, -ENXIO, "%s: CPU %u is offline", role, cpu);
	return 0;
}

/* Chooses the CPUs. Needs cpus_read_lock(), because it depends on the online CPUs. */
static int choose_cpus(struct ipitrace_storm_request *request, struct storm *storm)
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
			return refuse(request, -EINVAL,
				      "unicast: sender and target are both CPU %u (pattern self "
				      "does that)",
				      params->sender);
		cpumask_set_cpu(params->target, storm->cpus);
	} else if (params->pattern == STORM_BROADCAST) {
		cpumask_copy(storm->cpus, cpu_online_mask);
	}
	if (params->pattern != STORM_SELF && cpumask_weight(storm->cpus) < 2)
		return refuse(request, -ENXIO, "only one CPU is online");
	if (params->target_state == STORM_HALTED &&
	    (params->pattern == STORM_SELF || params->pattern == STORM_RING))
		return refuse(request, -EOPNOTSUPP,
			      "%s: the targets send, so they cannot be in HLT",
			      params->pattern == STORM_SELF ? "self" : "ring");
	return send_check(params, request->reason, sizeof(request->reason));
}

static u64 memory_needed(const struct storm *storm)
{
	const u64 senders = cpumask_weight(storm->senders), cpus = cpumask_weight(storm->cpus);

	return storm->total *
	       (senders * sizeof(struct storm_send) + cpus * sizeof(struct storm_receipt));
}

static int check_memory(struct ipitrace_storm_request *request, const struct storm *storm)
{
	const u64 needed = memory_needed(storm);
	const u64 allowed = (u64)max(si_mem_available(), 0L) * PAGE_SIZE / 2;

	if (needed > allowed)
		return refuse(
			request, -ENOMEM,
			"the records take %llu MiB, and half of the memory available is %llu MiB",
			needed >> 20, allowed >> 20);
	return 0;
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

/* Creates the requested storm, without its records; or an error and its reason. */
int request_accept(struct ipitrace_storm_request *request, struct storm **result)
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

/* Checks whether the storm can be run; if not, gives the reason. */
int request_check(struct ipitrace_storm_request *request)
{
	struct storm *storm;
	int error = request_accept(request, &storm);

	if (!error)
		storm_free(storm);
	return error;
}
