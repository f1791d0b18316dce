/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared by the counting programs (watch.bpf.c) and user space. This is the only
 * definition; ipitrace/abi/watch.py mirrors it and tests/contract compares them.
 *
 * Nothing is recorded: events are counted in memory that user space maps. A
 * watched vCPU has a slot: one head of fixed counters and a table of N_CELLS cells,
 * each with a key and a count. Only programs in the context of the vCPU's thread
 * write to the slot. There is one writer, which needs no atomics. `busy` rejects
 * the event of an interrupt in between, and `missed` counts it. A used cell is not
 * freed while the vCPU is watched; `unplaced` counts events without a free cell.
 *
 * If all VMs are watched, user space keeps some free slots, cleared, in a queue. A vCPU
 * thread that has no slot takes one from there.
 */
#ifndef IPITRACE_WATCH_H
#define IPITRACE_WATCH_H

/* One counter. A key of 0 marks a free cell; every other key contains its kind. */
struct ipitrace_watch_cell {
	__u64 key;
	__u64 count;
};

/* The kind of a key is in its top four bits; the bits below depend on the kind. */
enum ipitrace_watch_what {
	/* An interrupt accepted by a vCPU's local APIC while the slot's vCPU was sending it. */
	IPITRACE_WATCH_IPI = 1,
	/* Any other interrupt accepted in the context of the slot's thread. */
	IPITRACE_WATCH_OTHER = 2,
	/* An exit: the reason of kvm_exit in the low 32 bits, then isa (1 VMX, 2 SVM). */
	IPITRACE_WATCH_EXIT = 3,
	/* The slot's thread moved from another CPU to the host CPU in the low 32 bits. */
	IPITRACE_WATCH_CPU = 4,
	IPITRACE_WATCH_NR_WHATS = 5,
};

/* How the guest sent an IPI, if another event than kvm_exit shows it. */
enum ipitrace_watch_sent_by {
	IPITRACE_WATCH_SENT_BY_ICR = 0,
	IPITRACE_WATCH_SENT_BY_HYPERCALL = 1,
	IPITRACE_WATCH_SENT_BY_AVIC = 2, /* after kvm_avic_incomplete_ipi */
	IPITRACE_WATCH_SENT_BY_HV = 3, /* Hyper-V's hypercalls */
};

/* Bits of the keys IPI and OTHER (target, vector, mode), and of IPI only (the rest). */
#define IPITRACE_WATCH_TARGET_SHIFT 0 /* 16 bits: KVM's vcpu_id */
#define IPITRACE_WATCH_VECTOR_SHIFT 16 /* 8 bits */
#define IPITRACE_WATCH_MODE_SHIFT 24 /* 3 bits: the ICR's delivery mode, bits 10:8 */
#define IPITRACE_WATCH_SENT_BY_SHIFT 27 /* 2 bits */
#define IPITRACE_WATCH_CAUSE_SHIFT 29 /* 3 bits, after AVIC: the id of the event, 7 at most */
#define IPITRACE_WATCH_ISA_SHIFT 32 /* 2 bits, of the exit of the send; 0: none seen */
/* 16 bits, of the same exit; without VMX's flags; 0xffff for larger reasons of SVM. */
#define IPITRACE_WATCH_REASON_SHIFT 34
#define IPITRACE_WATCH_WHAT_SHIFT 60
#define IPITRACE_WATCH_TARGET_UNKNOWN 0xffff

/* A slot's fixed counters; 192 bytes, whole cache lines. */
struct ipitrace_watch_head {
	__u64 events; /* programs that ran for this slot */
	__u64 missed; /* events rejected because a program was already running */
	__u64 sends; /* send requests of the guest to KVM, for any number of targets */
	__u64 wakeups; /* kvm_vcpu_wakeup */
	__u64 waited; /* wakeups for which the thread had slept, not polled */
	__u64 fixed[2]; /* accepted with a vector: IPIs, others */
	__u64 apicv[2]; /* those of `fixed` that KVM passed to APICv or AVIC */
	__u64 pv_tlb_flushes; /* kvm_pv_tlb_flush, where a flush was needed */
	/* Events without a free cell, by kind, from kind 1. */
	__u64 unplaced[IPITRACE_WATCH_NR_WHATS - 1];
	/* Internal state of the programs: */
	__u32 busy;
	__u32 cpu; /* the CPU last seen, plus one */
	__u32 open; /* the current send, see watch.bpf.c; 0: none */
	__u16 exit_reason; /* of the current exit */
	__u8 exit_isa; /* 0: no current exit */
	__u8 last_what; /* kind of the last accepted interrupt */
	/* A counter again: */
	__u64 xen_hypercalls;
	__u64 pad[7];
};

/* Totals of vCPU threads without a slot; the sum over all CPUs counts. */
enum ipitrace_watch_total {
	IPITRACE_WATCH_STRANGER_SENDS = 0, /* their send requests */
	IPITRACE_WATCH_STRANGERS = 1, /* threads that were noted; one that was dropped, again */
	IPITRACE_WATCH_NR_TOTALS = 2,
};

/* A slot that a vCPU thread has taken by itself at its first event. */
struct ipitrace_watch_claim {
	__u64 thread; /* process << 32 | thread; written last; 0: the slot was not taken */
	__u64 since_ns; /* CLOCK_MONOTONIC */
	__u32 uid; /* the real user */
	__u8 comm[16]; /* the thread's name for itself */
	__u32 pad;
};

#endif
