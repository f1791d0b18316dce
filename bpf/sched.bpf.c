// SPDX-License-Identifier: GPL-2.0-only
/* When a vCPU's thread is switched out and in. */

#ifdef HAVE_sched_switch
/*
 * The raw argument is the task; TASK_PID_OFFSET is the offset of its tid in this
 * kernel. bpf_probe_read exists on every kernel and, on x86, reads kernel memory.
 */
static __always_inline u32 next_tid(u64 next)
{
#ifdef TASK_PID_OFFSET
	u32 tid = 0;

	bpf_probe_read(&tid, sizeof(tid), (void *)(next + TASK_PID_OFFSET));
	return tid;
#else
	return next;
#endif
}

/*
 * A switch between two other threads, on a CPU for which user space has named a vCPU: it goes to
 * that vCPU's ring. The vCPU is pinned to that CPU, so the ring still has one writer.
 */
static __always_inline void record_others(u32 tid, u32 next)
{
	u32 cpu = bpf_get_smp_processor_id();
	u32 *vcpu_plus_1 = vcpu_of_cpu.lookup(&cpu);
	struct ipitrace_head *head;
	u32 vcpu;

	if (!vcpu_plus_1 || !*vcpu_plus_1)
		return;
	vcpu = *vcpu_plus_1 - 1;
	head = head_of(vcpu, ROW_sched_switch);
	if (!head || head->count_only || !enter(head))
		return;
	head->others++;
	write_slot(head, vcpu * N_RINGS + ROW_sched_switch, tid, next, 2);
	leave(head);
}

/* The tracepoint fires before the switch: the current task is switched out. */
PROBE(sched_switch)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 next = next_tid(FIELD(sched_switch, next));
	int out = this_vcpu();
	int in = vcpu_of(next);

	if (out >= 0)
		record(out, ROW_sched_switch, 0, next, 0);
	if (in >= 0)
		record(in, ROW_sched_switch, 0, tid, 1);
	if (out < 0 && in < 0)
		record_others(tid, next);
	return 0;
}
#endif
