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

/* The tracepoint fires before the switch: the current task is switched out. */
PROBE(sched_switch)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 next = next_tid(FIELD(sched_switch, next));
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_sched_switch, 0, next, 0);
	vcpu = vcpu_of(next);
	if (vcpu >= 0)
		record(vcpu, ROW_sched_switch, 0, tid, 1);
	return 0;
}
#endif
