/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The sender's service MG_SERVICE_HV, a send by Hyper-V's hypercall: struct mg_hv_call.
 *
 * Out: r13:r12 and edx:eax as in service_entry; clobbers rbx and rcx
 *
 * KVM's hypercall page has the instruction of this CPU, VMCALL or VMMCALL. The registers are
 * those of the TLFS, "Hypercall Interface", for x64 callers; the result is in rax, and its low
 * half is 0 on success. An IPI to the sender itself arrives at the end of the hypercall:
 * its handler clobbers r8, which is no longer needed by then.
 */
#include "microguest.h"

	.text
	.balign 64
	.globl mg_hv_send
mg_hv_send:
	mov	MG_HV_CALL + MG_HV_CALL_CONTROL, %rcx
	mov	MG_HV_CALL + MG_HV_CALL_OUTPUT, %r8
	mov	MG_HV_CALL + MG_HV_CALL_INPUT, %rbx
	lfence
	rdtsc
	lfence
	mov	%eax, %r12d
	mov	%edx, %r13d
	mov	%rbx, %rdx
	call	MG_HV_PAGE
	mov	%eax, %ebx
	lfence
	rdtsc
	test	%bx, %bx
	jnz	1f
	iretq
1:	ud2 /* KVM refused: mg_exception reports this place */

	.section .note.GNU-stack, "", @progbits
