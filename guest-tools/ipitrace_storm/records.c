// SPDX-License-Identifier: GPL-2.0-only
/* A storm's records: their memory and their file. */
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include <asm/tsc.h>

#include "ipitrace_storm.h"

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
	struct storm_cpu *here = kzalloc_node(sizeof(*here), GFP_KERNEL, cpu_to_node(cpu));

	if (!here)
		return NULL;
	storm->cpu[cpu] = here; /* storm_free() frees it from here */
	here->storm = storm;
	here->cpu = cpu;
	here->sends = cpumask_test_cpu(cpu, storm->senders);
	if (!zalloc_cpumask_var(&here->targets, GFP_KERNEL))
		return NULL;
	if (here->sends)
		choose_targets(here);
	if (receives(storm, cpu)) {
		here->capacity = storm->total;
		here->receipts =
			vzalloc_node(storm->total * sizeof(*here->receipts), cpu_to_node(cpu));
		if (!here->receipts)
			return NULL;
	}
	return here;
}

int records_allocate(struct storm *storm)
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
		post_forget(storm->cpu[cpu]);
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

/* Stores the counts for storm_part(). */
void records_finish(struct storm *storm)
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

/* The parts of a storm's file in order; NULL after the last. */
const void *records_part(const struct storm *storm, unsigned int part, size_t *size)
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
