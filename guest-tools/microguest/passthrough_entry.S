/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Passthrough IPI: sending through the target's posted-interrupt descriptor, and
 * the entry point of the other vCPUs when vCPU 0 starts them by INIT and SIPI.
 *
 * Descriptors and MSRs: lab/kernel/patches, Documentation/virt/kvm/x86/passthrough-ipi.rst.
 */
#include "../storm_abi.h"
#include "microguest.h"

#define PI_CONTROL 32 /* ON and SN are its bits 0 and 1, then NV at 16 and NDST at 32 */
#define PI_ON 1
#define PI_ON_OR_SN 3
#define PI_SIZE 64
#define X2APIC_ID 0x802
#define X2APIC_ICR 0x830
#define EFER 0xc0000080
#define EFER_LMA 0x400
#define FIRST_TSS_SELECTOR 0x30
#define TSS_BUSY 2

	.text
/*
 * The sender's service MG_SERVICE_POST, one IPI to each of edi targets.
 *
 * In:  rbx the first target's descriptor, esi the vector, edi the number of targets;
 *      the other descriptors follow
 * Out: r13:r12 and edx:eax as in service_entry; clobbers rbx and edi
 *
 * The operation of a CPU that virtualises IPIs (SDM vol. 3C, 31.1.6): set the bit; then,
 * unless a notification is outstanding or suppressed, make it outstanding and send it to
 * the destination in the exchanged word. A bit that was already set is a coalesced IPI.
 * The locked instructions make the bit visible before the ICR is written; LFENCE keeps
 * WRMSR after them.
 */
	.balign 64
	.globl mg_post
mg_post:
	lfence
	rdtsc
	lfence
	mov	%eax, %r12d
	mov	%edx, %r13d
1:	lock bts %esi, (%rbx)
	jc	3f
	mov	PI_CONTROL(%rbx), %rax
2:	test	$PI_ON_OR_SN, %al
	jnz	3f
	mov	%rax, %rdx
	or	$PI_ON, %rdx
	lock cmpxchg %rdx, PI_CONTROL(%rbx)
	jne	2b
	mov	%rax, %rdx
	shr	$32, %rdx
	shr	$16, %eax
	movzbl	%al, %eax
	mov	$X2APIC_ICR, %ecx
	lfence
	wrmsr
3:	add	$PI_SIZE, %rbx
	dec	%edi
	jnz	1b
	lfence
	rdtsc
	iretq

/*
 * After INIT and SIPI a vCPU starts here, in real mode. It loads vCPU 0's tables and
 * control registers from struct mg_start.
 */
	.balign 4096
	.globl mg_started
mg_started:
	.code16
	cli
	mov	$(MG_PARAMS >> 4), %ax
	mov	%ax, %ds
	lgdtl	(MG_START + MG_START_GDT - MG_PARAMS)
	lidtl	(MG_START + MG_START_IDT - MG_PARAMS)
	mov	(MG_START + MG_START_CR4 - MG_PARAMS), %eax
	mov	%eax, %cr4
	mov	(MG_START + MG_START_CR3 - MG_PARAMS), %eax
	mov	%eax, %cr3
	mov	(MG_START + MG_START_EFER - MG_PARAMS), %eax
	and	$~EFER_LMA, %eax
	xor	%edx, %edx
	mov	$EFER, %ecx
	wrmsr
	mov	(MG_START + MG_START_CR0 - MG_PARAMS), %eax
	mov	%eax, %cr0
	ljmpl	$MG_KERNEL_CS, $in_long_mode

	.code64
in_long_mode:
	mov	$MG_KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$X2APIC_ID, %ecx
	rdmsr
	mov	%eax, %edi
	imul	$MG_VCPU_SIZE, %edi, %edx
	mov	MG_VCPUS + MG_VCPU_STACK(%rdx), %rsp
	mov	MG_START + MG_START_GDT + 2, %rdx
	mov	%edi, %eax
	shl	$4, %eax
	add	$FIRST_TSS_SELECTOR, %eax
	andb	$~TSS_BUSY, 5(%rdx, %rax)
	ltr	%ax
	jmp	_start

	.section .note.GNU-stack, "", @progbits
