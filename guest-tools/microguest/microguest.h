/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The micro-guest's own memory map, shared by its C, its assembly and the
 * VMM (ipitrace/storm/micro/image.py, compared by tests/contract).
 */
#ifndef IPITRACE_MICROGUEST_H
#define IPITRACE_MICROGUEST_H

#define MG_LOAD 0x10000 /* the payload; entered at its first byte, rdi = vCPU index */
#define MG_PARAMS 0x20000
#define MG_STATUS 0x20100
#define MG_START 0x20180 /* struct mg_start */
#define MG_FOREIGN 0x201c0 /* struct mg_foreign */
#define MG_VCPUS 0x21000
#define MG_VCPU_SIZE 128
#define MG_MAX_VCPUS 64

#define MG_HV_PAGE 0x2e000 /* KVM's hypercall page, once enabled */
#define MG_HV_CALL 0x2f000 /* struct mg_hv_call */

/* Values of `ready` in struct mg_vcpu of a target. */
#define MG_READY 1 /* the target waits for the IPI */
#define MG_READY_PREEMPTED 2 /* the same, and the VMM keeps its thread off the CPU */

#define MG_VECTOR_TARGET 0xf0 /* to a vCPU that only waits */
#define MG_VECTOR_SELF 0xf1 /* to the sender, whose registers are live */
#define MG_VECTOR_SPURIOUS 0xff

/* Selectors of the GDT that the VMM builds. */
#define MG_KERNEL_CS 0x08
#define MG_KERNEL_DS 0x10
#define MG_USER_DS 0x1b
#define MG_USER_CS 0x23

/* An OUT of an enum storm_state to this port reports the state to the VMM. */
#define MG_PORT 0x501

/* Kernel-mode services for the sender; see service_entry. */
#define MG_SERVICE_SEND_X2APIC 0
#define MG_SERVICE_SEND_XAPIC 1
#define MG_SERVICE_REPORT 2
#define MG_SERVICE_TRIPLE_FAULT 3
#define MG_SERVICE_POST 4
#define MG_SERVICE_VMCALL 5
#define MG_SERVICE_VMMCALL 6
#define MG_SERVICE_HV 7

#define MG_XAPIC_BASE 0xfee00000

/* Address of the posted-interrupt descriptors, for STORM_PASSTHROUGH. */
#define MG_DESCRIPTORS 0xfe000000

/* Offsets in struct mg_vcpu, for the assembly; checked in microguest.c. */
#define MG_VCPU_HANDLED 0
#define MG_VCPU_READY 8
#define MG_VCPU_NEXT_RECEIPT 64
#define MG_VCPU_END_RECEIPT 72
#define MG_VCPU_XAPIC 80
#define MG_VCPU_STACK 88

/* Offsets in struct mg_start, checked in the same way. */
#define MG_START_GDT 0
#define MG_START_IDT 16
#define MG_START_CR0 32
#define MG_START_CR3 40
#define MG_START_CR4 48
#define MG_START_EFER 56

/* Offsets in struct mg_hv_call, checked in the same way. */
#define MG_HV_CALL_CONTROL 0
#define MG_HV_CALL_INPUT 8
#define MG_HV_CALL_OUTPUT 16

#define MG_PARAMS_BURN 72 /* handler_burn_cycles in struct storm_params, checked in the same way */

#ifndef __ASSEMBLER__
/*
 * One per vCPU at MG_VCPUS. The sender polls the first cache line; only the
 * vCPU itself accesses the second one.
 */
struct mg_vcpu {
	unsigned long long handled; /* handler entries so far: the acknowledgement */
	unsigned long long ready; /* 0, or one of MG_READY* */
	unsigned long long phase; /* of a sender; see meet() */
	unsigned long long pad1[5];
	unsigned long long next_receipt; /* address of the next free struct storm_receipt */
	unsigned long long end_receipt; /* end of the log; further entries are only counted */
	unsigned long long xapic; /* EOI through memory instead of an MSR */
	unsigned long long stack; /* its stack pointer when it starts */
	unsigned long long descriptors; /* address of vCPU 0's, once enabled */
	unsigned long long vmmcall; /* vCPU 0's: hypercalls are VMMCALL, not VMCALL */
	unsigned long long pad2[2];
};

/* Data of vCPU 0 for vCPUs that it starts by SIPI; tables in the format of SGDT and SIDT. */
struct mg_start {
	unsigned char gdt[10];
	unsigned char pad1[6];
	unsigned char idt[10];
	unsigned char pad2[6];
	unsigned long long cr0;
	unsigned long long cr3;
	unsigned long long cr4;
	unsigned long long efer;
};

/* Writes to the ICR before a passthrough storm; none unless the VMM requests them. */
struct mg_foreign {
	unsigned int icr_low;
	unsigned int apic_id;
	unsigned int count;
	unsigned int emulated; /* 0: the physical ICR; 1: the guest's own, by the other MSR */
};

/* The Hyper-V hypercall that sends: its three registers, and the _ex form's input in memory. */
struct mg_hv_call {
	unsigned long long control;
	unsigned long long input; /* the plain form: the vector */
	unsigned long long output; /* the plain form: the processors, one bit each */
	unsigned long long pad;
	unsigned int vector;
	unsigned int reserved;
	unsigned long long format;
	unsigned long long valid_banks;
	unsigned long long bank[1];
};

/* At the payload's start, after the jump; offsets are from MG_LOAD. */
struct mg_header {
	unsigned char jump[8];
	unsigned char magic[8]; /* "ipitrace" */
	unsigned int abi_version;
	unsigned int target_entry;
	unsigned int self_entry;
	unsigned int spurious_entry;
	unsigned int service_entry; /* INT3, open to user mode, interrupts left on */
	unsigned int exception_entries; /* 32 of them, 16 bytes apart */
	unsigned int burning_target_entry; /* these two spend handler_burn_cycles */
	unsigned int burning_self_entry;
	unsigned int size;
};
#endif

#endif
