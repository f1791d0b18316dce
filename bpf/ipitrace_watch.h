/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the counting programs (watch.bpf.c) and user space share. The only
 * definition; ipitrace/abi/watch.py mirrors it and tests/contract compares them.
 *
 * Nothing is recorded: events are added up in memory that user space maps. A
 * watched vCPU has a slot: one head of fixed counters and a table of N_CELLS cells,
 * each a key and how often it was counted. Only programs in the context of the
 * vCPU's thread write there, so there is one writer and nothing is atomic; an
 * interrupt that comes between is turned away by `busy` and counted in `missed`.
 * Cells fill up and are never freed while the vCPU is watched; what finds no cell
 * is counted in `unplaced`.
 */
#ifndef IPITRACE_WATCH_H
#define IPITRACE_WATCH_H

/* One thing counted. A key of 0 marks a free cell, and every key carries its kind. */
struct ipitrace_watch_cell {
	__u64 key;
	__u64 count;
};

/* What a key says is in its top four bits; the bits below depend on it. */
enum ipitrace_watch_what {
	/* An interrupt accepted by a vCPU's local APIC while the slot's vCPU was sending it. */
	IPITRACE_WATCH_IPI = 1,
	/* Any other interrupt accepted in the context of the slot's thread. */
	IPITRACE_WATCH_OTHER = 2,
	/* An exit: the reason as kvm_exit has it in the low 32 bits, then isa (1 VMX, 2 SVM). */
	IPITRACE_WATCH_EXIT = 3,
	/* The slot's thread was seen on the host CPU in the low 32 bits, having left another. */
	IPITRACE_WATCH_CPU = 4,
	IPITRACE_WATCH_NR_WHATS = 5,
};

/* How the guest asked for an IPI, where something other than kvm_exit tells. */
enum ipitrace_watch_sent_by {
	IPITRACE_WATCH_SENT_BY_ICR = 0,
	IPITRACE_WATCH_SENT_BY_HYPERCALL = 1,
	IPITRACE_WATCH_SENT_BY_AVIC = 2, /* after kvm_avic_incomplete_ipi */
};

/* Bits of the keys IPI and OTHER (target, vector, mode) and IPI alone (the rest). */
#define IPITRACE_WATCH_TARGET_SHIFT 0 /* 16 bits: KVM's vcpu_id */
#define IPITRACE_WATCH_VECTOR_SHIFT 16 /* 8 bits */
#define IPITRACE_WATCH_MODE_SHIFT 24 /* 3 bits: the ICR's delivery mode, bits 10:8 */
#define IPITRACE_WATCH_SENT_BY_SHIFT 27 /* 2 bits */
#define IPITRACE_WATCH_ISA_SHIFT 32 /* 2 bits, of the exit in which it was sent; 0: none seen */
/* 16 bits, likewise; without VMX's flags, and 0xffff for SVM's greater ones. */
#define IPITRACE_WATCH_REASON_SHIFT 34
#define IPITRACE_WATCH_WHAT_SHIFT 60
#define IPITRACE_WATCH_TARGET_UNKNOWN 0xffff

/* A slot's fixed counters; 128 bytes. */
struct ipitrace_watch_head {
	__u64 events; /* programs that ran for this slot */
	__u64 missed; /* events turned away because a program was running already */
	__u64 sends; /* times the guest asked KVM to send, whatever the number of targets */
	__u64 wakeups; /* kvm_vcpu_wakeup */
	__u64 waited; /* those of them for which the thread had slept, not polled */
	__u64 fixed[2]; /* accepted with a vector: IPIs, others */
	__u64 apicv[2]; /* those of them that were handed to APICv or AVIC */
	__u64 unplaced[IPITRACE_WATCH_NR_WHATS]; /* no free cell, by what */
	/* The programs' own notes: */
	__u32 busy;
	__u32 cpu; /* the CPU last seen, plus one */
	__u32 open; /* the send going on, see watch.bpf.c; 0: none */
	__u16 exit_reason; /* of the exit going on */
	__u8 exit_isa; /* 0: no exit is going on */
	__u8 last_what; /* what the last accepted interrupt was */
};

#endif
