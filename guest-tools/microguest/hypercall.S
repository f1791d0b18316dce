/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sending by KVM_HC_SEND_IPI (Documentation/virt/kvm/x86/hypercalls.rst).
 */
#include "../storm_abi.h"
#include "microguest.h"

#define KVM_HC_SEND_IPI 10

/*
 * The sender's services MG_SERVICE_VMCALL and MG_SERVICE_VMMCALL, one hypercall.
 *
 * In:  rbx and rcx the bitmap of APIC ids (low and high), edi the id of its bit 0, esi the ICR
 * Out: r13:r12 and edx:eax as in service_entry; the hypercall's result is ignored: if it failed,
 *      no handler acknowledges the IPI
 *
 * KVM replaces the one instruction by the other where a guest uses the wrong one, unless
 * KVM_X86_QUIRK_FIX_HYPERCALL_INSN is disabled.
 */
.macro HYPERCALL instruction
	lfence
	rdtsc
	lfence
	mov	%eax, %r12d
	mov	%edx, %r13d
	mov	$KVM_HC_SEND_IPI, %eax
	mov	%edi, %edx
	\instruction
	lfence
	rdtsc
	iretq
.endm

	.text
	.balign 64
	.globl mg_vmcall
mg_vmcall:
	HYPERCALL vmcall
	.balign 64
	.globl mg_vmmcall
mg_vmmcall:
	HYPERCALL vmmcall

	.section .note.GNU-stack, "", @progbits
