/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared by the BPF programs and user space: the record of one host event, the
 * head of one ring, and the number of each kind of event. This is the only
 * definition; ipitrace/abi/events.py mirrors it and tests/contract compares them.
 *
 * A ring belongs to one (vCPU, kind). A program runs in the context of the
 * vCPU's thread, which is on one CPU at a time. Only an interrupt on that CPU
 * can run a program in between. Since Linux 6.1 the kernel prevents the nesting
 * of a raw tracepoint's program (05b24ff9b2cf, "bpf: Prevent bpf program recursion
 * for raw tracepoint probes"); before, `busy` rejects its event and `missed` counts
 * it. Every ring therefore has one writer and needs no atomics. The ring
 * determines the vCPU and the kind of an event; the record does not store them.
 */
#ifndef IPITRACE_EVENTS_H
#define IPITRACE_EVENTS_H

#define TIDS_PER_CELL 64 /* threads of one element of the map vcpu_of_tid */

/* One host event; 24 bytes. Each kind below defines arg, word and detail. */
struct ipitrace_event {
	__u64 ts_ns; /* CLOCK_MONOTONIC, bpf_ktime_get_ns() */
	__u64 arg;
	__u32 word;
	__u16 cpu; /* the CPU on which it happened */
	__u16 detail;
};

/*
 * The head of one ring, alone on its cache line. `written` + `counted` - `others` is
 * the number of events that passed the filter, read by user space or not. The exact
 * number of lost records is `written` minus the number of records read.
 */
struct ipitrace_head {
	__u64 written; /* records written to the ring; position of the next one */
	__u64 counted; /* events without a record */
	__u64 missed; /* events rejected while this ring was being written; with NEST_GUARD only */
	__u64 busy;
	__u64 elsewhere; /* vCPU 0 only: events in other threads of the process, no record */
	__u64 count_only; /* set by user space: count only, write no records */
	__u64 others; /* of `written`: no events of a vCPU, see IPITRACE_SCHED_SWITCH */
	__u64 pad[1];
};

/* ICRs: the interrupt command registers and the self-IPI register. */
enum ipitrace_kind {
	/* word: reason; arg: info1; detail: isa (1 VMX, 2 SVM, 0 unknown: word is ~0 if not read) */
	IPITRACE_KVM_EXIT = 0,
	IPITRACE_KVM_ENTRY = 1,
	IPITRACE_KVM_APIC_IPI = 2, /* word: icr_low, arg: dest_id */
	IPITRACE_KVM_APIC_ACCEPT_IRQ = 3, /* word: apicid, arg: dm, detail: vec */
	IPITRACE_KVM_APICV_ACCEPT_IRQ = 4, /* word: apicid, arg: dm, detail: vec */
	IPITRACE_KVM_EOI = 5, /* detail: vector, 0xffff if none was in service */
	IPITRACE_KVM_PV_EOI = 6, /* detail: vector */
	IPITRACE_KVM_MSR = 7, /* ICRs only; word: ecx, arg: data, detail: write | exception << 1 */
	IPITRACE_KVM_APIC = 8, /* ICRs only; word: reg, arg: val, detail: rw */
	IPITRACE_KVM_HYPERCALL = 9, /* SEND_IPI only; word: nr, arg: a0 */
	IPITRACE_KVM_INJ_VIRQ = 10, /* detail: vector */
	IPITRACE_KVM_VCPU_WAKEUP = 11, /* arg: ns, detail: waited | valid << 1 */
	IPITRACE_KVM_EMULATE_INSN = 12, /* counted, no record */
	IPITRACE_KVM_AVIC_INCOMPLETE_IPI = 13, /* word: id, arg: icrh << 32 | icrl, detail: index */
	IPITRACE_KVM_AVIC_KICK_VCPU_SLOWPATH = 14, /* word: index, arg: icrh << 32 | icrl */
	IPITRACE_KVM_AVIC_DOORBELL = 15, /* word: apicid, detail: vcpuid */
	IPITRACE_KVM_APICV_INHIBIT_CHANGED = 16, /* word: reason, arg: inhibits, detail: set */
	IPITRACE_KVM_WRITE_TSC_OFFSET = 17, /* word: vcpu_id, arg: next_tsc_offset */
	IPITRACE_KVM_PI_IRTE_UPDATE = 18, /* word: host_irq, arg: gsi, detail: gvec */
	IPITRACE_RESCHEDULE_ENTRY = 19, /* detail: vector */
	IPITRACE_CALL_FUNCTION_ENTRY = 20, /* detail: vector */
	IPITRACE_CALL_FUNCTION_SINGLE_ENTRY = 21, /* detail: vector */
	IPITRACE_IPI_SEND_CPU = 22, /* word: destination CPU */
	/*
	 * word: the other task's tid, detail: 0 out, 1 in. detail 2: a switch from thread arg
	 * to thread word, neither of which is a vCPU's, on a CPU that user space asked for.
	 */
	IPITRACE_SCHED_SWITCH = 23,
	/*
	 * Functions of the kernel. The first three run for the vCPU that an interrupt is
	 * for, which may be any: a record shows only whose thread was interrupted.
	 */
	IPITRACE_PI_WAKEUP_HANDLER = 24,
	IPITRACE_SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI = 25,
	IPITRACE_SMP_KVM_POSTED_INTR_IPI = 26,
	IPITRACE_VMX_DELIVER_INTERRUPT = 27, /* detail: vector, 0 if not known */
	IPITRACE_VMX_DELIVER_POSTED_INTERRUPT = 28, /* detail: vector, 0 if not known */
	/* On return, and only if they handled the exit; word: the returned fastpath_t. */
	IPITRACE_HANDLE_FASTPATH_SET_MSR_IRQOFF = 29,
	IPITRACE_HANDLE_FASTPATH_WRMSR = 30,
	IPITRACE_HANDLE_FASTPATH_WRMSR_IMM = 31,
	IPITRACE_KVM_PLE_WINDOW_UPDATE = 32, /* word: new window, arg: old one */
	IPITRACE_KVM_HV_SEND_IPI = 33, /* arg: processor_mask, detail: vector */
	IPITRACE_KVM_HV_SEND_IPI_EX = 34, /* word: format, arg: valid_bank_mask, detail: vector */
	IPITRACE_KVM_AVIC_UNACCELERATED_ACCESS =
		35, /* ICRs only; word: offset, detail: rw | ft << 1 */
	IPITRACE_KVM_VMGEXIT_ENTER = 36, /* word: exit_reason, arg: info1 */
	IPITRACE_KVM_XEN_HYPERCALL = 37, /* word: nr, arg: a0 */
	/* A tracepoint, where a flush is needed. */
	IPITRACE_KVM_PV_TLB_FLUSH = 38, /* counted, no record */
	IPITRACE_NR_KINDS = 39,
};

#endif
