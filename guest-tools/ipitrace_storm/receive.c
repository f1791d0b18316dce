// SPDX-License-Identifier: GPL-2.0-only
/*
 * The receiving side: a handler on X86_PLATFORM_IPI_VECTOR.
 *
 * The kernel always has an entry for this vector, which only SGI UV uses. The
 * entry ends the interrupt and fires the tracepoint
 * irq_vectors:x86_platform_ipi_entry. The module attaches to this tracepoint and
 * does not change the IDT. The kernel's code before the tracepoint, including
 * the EOI, runs before the handler's stamp.
 */
#include <linux/cpu.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <asm/irq_regs.h>
#include <asm/irq_vectors.h>
#include <asm/ptrace.h>

#include "ipitrace_storm.h"

const char storm_tracepoint[] = "x86_platform_ipi_entry";

static DEFINE_PER_CPU(struct storm_cpu *, storm_here);
static struct tracepoint *tracepoint;
static atomic64_t strays = ATOMIC64_INIT(0);

/*
 * Whether the interrupt found its CPU in the requested state. Not every entry
 * sets the registers for get_irq_regs(); the current task then decides.
 */
static bool as_asked(const struct storm_cpu *here)
{
	const struct storm_params *params = &here->storm->file.params;
	struct pt_regs *regs = get_irq_regs();

	if (here->sends || params->target_state == STORM_RUNNING_KERNEL)
		return current == here->worker && !here->halting;
	if (params->target_state == STORM_HALTED)
		return current == here->worker && here->halting;
	return !(current->flags & PF_KTHREAD) && (!regs || user_mode(regs));
}

static void receive(u64 now, bool by_smp_call)
{
	struct storm_cpu *here = this_cpu_read(storm_here);
	const struct storm_params *params;
	u64 seq, end;

	if (!here || (here->storm->file.params.send_method == STORM_SMP_CALL) != by_smp_call) {
		atomic64_inc(&strays);
		return;
	}
	params = &here->storm->file.params;
	seq = here->handled;
	if (seq < here->capacity) {
		here->receipts[seq].handler_tsc = now;
		here->receipts[seq].seq = seq;
		here->as_asked += as_asked(here);
	}
	if (params->handler_burn_cycles) {
		/* No cpu_relax(): pauses in a loop can cause VM exits. */
		end = stamp() + params->handler_burn_cycles;
		while (stamp() < end)
			;
	}
	smp_store_release(&here->handled, seq + 1);
}

static void notrace receive_ipi(void *unused, int vector)
{
	const u64 now = stamp();

	receive(now, false);
}

/* The function that smp_call_function_*() calls. */
void notrace receive_smp_call(void *unused)
{
	const u64 now = stamp();

	receive(now, true);
}

/* IPIs to CPUs that take part in no storm, since the module was loaded. */
u64 receive_strays(void)
{
	return atomic64_read(&strays);
}

/* From now on the storm's CPUs log their interrupts. */
void receive_attach(struct storm *storm)
{
	unsigned int cpu;

	for_each_cpu(cpu, storm->cpus)
		per_cpu(storm_here, cpu) = storm->cpu[cpu];
}

static void detach_here(void *unused)
{
	this_cpu_write(storm_here, NULL);
}

/*
 * After this, no CPU logs. A CPU handles its interrupts one after another: once
 * it has run detach_here(), no earlier interrupt of the storm is being handled.
 */
void receive_detach(void)
{
	unsigned int cpu;

	cpus_read_lock();
	on_each_cpu(detach_here, NULL, 1);
	for_each_possible_cpu(cpu) /* includes CPUs that went offline */
		per_cpu(storm_here, cpu) = NULL;
	cpus_read_unlock();
}

static void find_tracepoint(struct tracepoint *candidate, void *found)
{
	if (!strcmp(candidate->name, storm_tracepoint))
		*(struct tracepoint **)found = candidate;
}

int receive_init(void)
{
	for_each_kernel_tracepoint(find_tracepoint, &tracepoint);
	if (!tracepoint)
		return -ENOENT;
	return tracepoint_probe_register(tracepoint, receive_ipi, NULL);
}

void receive_exit(void)
{
	tracepoint_probe_unregister(tracepoint, receive_ipi, NULL);
	tracepoint_synchronize_unregister();
}
