/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The storm: the request to a guest and the records it returns. This is the only
 * definition, used by both guests (the micro-guest, the Linux module) and
 * mirrored by ipitrace/abi/storm.py; tests/contract compares the two.
 *
 * One vCPU, the sender, sends `warmup` IPIs and then `count` more, waiting for
 * the acknowledgement of each before it sends the next. In a ring every vCPU is a
 * sender. All stamps are the guest's TSC. docs/terms.md defines send, deliver and
 * round trip.
 */
#ifndef IPITRACE_STORM_ABI_H
#define IPITRACE_STORM_ABI_H

#define STORM_ABI_VERSION 2
#define STORM_ALL_BUT_SELF 0xffff
#define STORM_ALL 0xfffe
#define STORM_TARGET_MASK 0xfffd /* the vCPUs of target_mask */
/* The module's name when the format was made; the format keeps it. */
#define STORM_FILE_MAGIC "IPISTORM"

#ifndef __ASSEMBLER__

enum storm_pattern {
	STORM_UNICAST = 0, /* to vCPU `target` */
	STORM_SELF = 1, /* to the sender itself */
	STORM_BROADCAST = 2, /* one send to all vCPUs except the sender */
	STORM_RING = 3, /* each vCPU to the next one, all at once */
	STORM_MULTICAST = 4, /* one send to the vCPUs of `target_mask`, by their logical ids */
	STORM_BROADCAST_SELF = 5, /* one send to all vCPUs */
	STORM_UNICAST_LOGICAL = 6, /* to vCPU `target`, by its logical id */
};

enum storm_target_state {
	STORM_RUNNING_USER = 0, /* spins in guest user mode */
	STORM_RUNNING_KERNEL = 1, /* spins in guest kernel mode */
	STORM_HALTED = 2, /* in HLT */
	STORM_MASKED = 3, /* interrupts disabled until the IPI has been sent */
	STORM_PREEMPTED = 4, /* spins in guest user mode; its thread has no CPU until then */
};

enum storm_send_method {
	STORM_X2APIC = 0, /* WRMSR to the ICR, or to SELF_IPI */
	STORM_XAPIC = 1, /* two stores to the memory-mapped ICR */
	STORM_PV_HYPERCALL = 2, /* KVM_HC_SEND_IPI */
	STORM_PASSTHROUGH = 3, /* through the target's posted-interrupt descriptor */
	STORM_SMP_CALL = 4, /* the guest kernel's smp_call_function */
	STORM_HV_HYPERCALL = 5, /* HvCallSendSyntheticClusterIpi */
	/* HvCallSendSyntheticClusterIpiEx; a broadcast is to all processors, the sender included */
	STORM_HV_HYPERCALL_EX = 6,
};

/* Faults injected in the middle of the storm, to test that they are reported. */
enum storm_inject {
	STORM_INJECT_NONE = 0,
	STORM_INJECT_LOST_IPI = 1, /* one IPI is recorded and never sent */
	STORM_INJECT_HANG = 2, /* the sender never sends again */
	STORM_INJECT_TRIPLE_FAULT = 3,
};

enum storm_state {
	STORM_BOOTING = 0,
	STORM_WARMING_UP = 1,
	STORM_MEASURING = 2,
	STORM_DONE = 3,
	STORM_GAVE_UP = 4, /* more than max_incomplete IPIs timed out */
	STORM_FAULTED = 5, /* an unexpected exception */
};

/* Written by the host before the guest starts; 88 bytes. */
struct storm_params {
	unsigned int abi_version;
	unsigned int n_vcpus;
	unsigned int pattern;
	unsigned int target_state;
	unsigned int send_method;
	unsigned int target; /* vCPU index; its APIC id is the same number */
	unsigned int inject;
	unsigned int max_incomplete;
	unsigned long long warmup;
	unsigned long long count;
	unsigned long long pace_cycles; /* from one acknowledgement to the next send */
	unsigned long long timeout_cycles; /* then the IPI counts as incomplete */
	unsigned long long sends; /* address of struct storm_send[senders][warmup + count] */
	unsigned long long handler_burn_cycles; /* spent in each handler after its stamp */
	unsigned int sender; /* vCPU index; the micro-guest's is always 0 */
	unsigned int target_mask; /* of a multicast: bit n is vCPU n */
};

/* Written by the guest; 64 bytes. */
struct storm_status {
	unsigned int state;
	unsigned int incomplete; /* IPIs that were not acknowledged in time */
	unsigned long long sent; /* warm-up included; of the micro-guest, by vCPU 0 only */
	unsigned int fault_vector;
	unsigned int fault_vcpu;
	unsigned long long fault_rip;
	unsigned long long fault_error;
	unsigned long long spurious; /* interrupts on the spurious vector, or not of the storm */
	unsigned long long as_asked; /* handler entries with their vCPU in target_state */
	unsigned long long reserved;
};

/* One send, in the sender's log; 32 bytes. */
struct storm_send {
	unsigned long long send_tsc; /* before the instruction(s) that send */
	unsigned long long sent_tsc; /* after them */
	unsigned long long ack_tsc; /* every target's acknowledgement seen; 0: timed out */
	unsigned int seq; /* 0 for the first, warm-up included */
	unsigned short target; /* vCPU index, or STORM_ALL_BUT_SELF, _ALL or _TARGET_MASK */
	unsigned short sender; /* vCPU index */
};

/* One handler entry, in the log of the vCPU that handled it; 24 bytes. */
struct storm_receipt {
	unsigned long long handler_tsc; /* the handler's first instruction */
	unsigned long long eoi_tsc; /* after its EOI; 0: ended before handler_tsc, time unknown */
	unsigned long long seq; /* 0 for the vCPU's first, counted by the handler */
};

/*
 * The file that a Linux guest returns, little-endian: this header of 192 bytes;
 * n_sends of struct storm_send by (sender, seq), warm-up included; then
 * unsigned long long n_receipts[n_vcpus]; then each vCPU's struct storm_receipt
 * in the order of the vCPUs. A vCPU's index is its CPU number in the guest.
 */
struct storm_file {
	char magic[8]; /* STORM_FILE_MAGIC, without its end */
	unsigned int abi_version;
	unsigned int header_bytes; /* of this struct */
	unsigned int n_vcpus;
	unsigned int vector; /* of the IPIs */
	unsigned long long tsc_khz; /* 0: not known */
	unsigned long long n_sends;
	struct storm_params params;
	struct storm_status status;
};
#endif /* __ASSEMBLER__ */

#endif
