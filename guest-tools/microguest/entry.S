/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The micro-guest's way in, its interrupt handlers and its waiting loops.
 *
 * Plain x86-64, correct on any KVM backend. What runs in user mode (CPL 3)
 * holds no instruction that is sensitive but does not trap there.
 *
 * Both sender and targets live in user mode. Kernel mode is entered for what
 * needs it alone: the sender's service, a dozen instructions around the send,
 * and the handlers. On VMX and SVM that makes no difference to what is timed;
 * where guest kernel mode is emulated it keeps the emulator out of the numbers.
 *
 * Registers: r15 is this vCPU's struct mg_vcpu for good. A target keeps
 * nothing in any other register while it waits, so its handler's very first
 * instruction can be the RDTSC that is its stamp. The sender is C code with
 * live registers; r8-r11 are kept out of its hands (-ffixed-*) for its handler.
 */
#include "../storm_abi.h"
#include "microguest.h"

	.section .head, "ax"
	.globl _start
_start:
	jmp	boot
	.balign 8
	.ascii	"ipitrace"
	.long	STORM_ABI_VERSION
	.long	target_entry - _start
	.long	self_entry - _start
	.long	spurious_entry - _start
	.long	service_entry - _start
	.long	exception_entries - _start
	.long	burning_target_entry - _start
	.long	burning_self_entry - _start
	.long	payload_end - _start

	.text
boot:
	mov	%edi, %r15d
	imul	$MG_VCPU_SIZE, %r15d, %r15d
	add	$MG_VCPUS, %r15d
	call	mg_main
1:	jmp	1b

/* rdtsc into rax; rdx is lost */
.macro READ_TSC
	rdtsc
	shl	$32, %rdx
	or	%rdx, %rax
.endm

/* Tells the local APIC the interrupt is over; rax, rcx and rdx are lost. */
.macro END_OF_INTERRUPT
	cmpq	$0, MG_VCPU_XAPIC(%r15)
	jne	2f
	mov	$0x80b, %ecx
	xor	%eax, %eax
	xor	%edx, %edx
	wrmsr
	jmp	3f
2:	mov	$(MG_XAPIC_BASE + 0xb0), %ecx
	movl	$0, (%rcx)
3:
.endm

/*
 * The body of both handlers. In: rax is the stamp of the first instruction.
 * EOI comes before the acknowledgement, as in Linux's handlers, so that the
 * next IPI never finds this one still in service. All of rax, rcx, rdx and r11
 * are lost.
 *
 * With `burn` it wastes handler_burn_cycles before it acknowledges: R grows by
 * them, S and D do not. It has entries of its own, so that the others hold no
 * instruction for it.
 */
.macro HANDLE burn=0
	mov	MG_VCPU_NEXT_RECEIPT(%r15), %r11
	cmp	MG_VCPU_END_RECEIPT(%r15), %r11
	jae	4f
	mov	%rax, 0(%r11)
	mov	MG_VCPU_HANDLED(%r15), %rax
	mov	%rax, 16(%r11)
	END_OF_INTERRUPT
	READ_TSC
	mov	%rax, 8(%r11)
	add	$24, %r11
	mov	%r11, MG_VCPU_NEXT_RECEIPT(%r15)
	jmp	5f
4:	END_OF_INTERRUPT
5:
	.if \burn
	READ_TSC
	mov	%rax, %r11
	add	MG_PARAMS + MG_PARAMS_BURN, %r11
6:	READ_TSC
	cmp	%r11, %rax
	jb	6b
	.endif
	incq	MG_VCPU_HANDLED(%r15)
.endm

.macro HANDLE_ON_TARGET burn=0
	READ_TSC
	HANDLE \burn
	iretq
.endm

.macro HANDLE_ON_SENDER burn=0
	mov	%rax, %r8
	mov	%rdx, %r9
	READ_TSC
	mov	%rcx, %r10
	HANDLE \burn
	mov	%r8, %rax
	mov	%r9, %rdx
	mov	%r10, %rcx
	iretq
.endm

	.balign 64
target_entry:
	HANDLE_ON_TARGET
	.balign 64
self_entry:
	HANDLE_ON_SENDER
	.balign 64
burning_target_entry:
	HANDLE_ON_TARGET burn=1
	.balign 64
burning_self_entry:
	HANDLE_ON_SENDER burn=1

	.balign 16
spurious_entry:
	lock incq MG_STATUS + 40
	iretq

/*
 * Exceptions but INT3: vector, then an error code (0 where the CPU pushes none), then
 * the CPU's frame.
 */
	.balign 16
exception_entries:
	.set	vector, 0
	.rept	32
	.balign	16
	.if !((1 << vector) & 0x60227d00)
	push	$0
	.endif
	push	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr

exception:
	pop	%rdi
	pop	%rsi
	pop	%rdx
	call	mg_exception
1:	jmp	1b

/* void mg_wait_halted(void): one HLT a time, interrupts on */
	.globl	mg_wait_halted
mg_wait_halted:
	movq	$MG_READY, MG_VCPU_READY(%r15)
1:	sti
	hlt
	jmp	1b

/* void mg_wait_kernel(void): spins in kernel mode */
	.globl	mg_wait_kernel
mg_wait_kernel:
	sti
	movq	$MG_READY, MG_VCPU_READY(%r15)
1:	pause
	jmp	1b

/* void mg_open_window(u64 sent): interrupts on until the sender counts more; handlers keep rdi */
	.globl	mg_open_window
mg_open_window:
	sti
1:	pause
	cmp	%rdi, MG_STATUS + 8
	je	1b
	cli
	ret

/* void mg_wait_user(void): spins in user mode; interrupts come in through TSS.RSP0 */
	.globl	mg_wait_user
mg_wait_user:
	mov	%rsp, %rax
	push	$MG_USER_DS
	push	%rax
	push	$0x202
	push	$MG_USER_CS
	lea	1f(%rip), %rax
	push	%rax
	iretq
1:	movq	$MG_READY, MG_VCPU_READY(%r15)
2:	pause
	jmp	2b

/* void mg_sender_in_user_mode(void): goes on in mg_sender(), interrupts on */
	.globl	mg_sender_in_user_mode
mg_sender_in_user_mode:
	mov	%rsp, %rax
	push	$MG_USER_DS
	push	%rax
	push	$0x202
	push	$MG_USER_CS
	lea	mg_sender(%rip), %rax
	push	%rax
	iretq

/*
 * The sender's service, by INT3: every KVM backend delivers that (KVM's
 * instruction emulator, which runs guest kernel mode on some, knows no INT n in
 * long mode). Its gate leaves interrupts on, so that an IPI to itself is taken
 * as soon as it can be.
 *
 * In:  eax which service; rbx the xAPIC's ICR, ecx the MSR, esi and edi what to
 *      write into the ICR's halves; or esi the state to report; or see mg_post
 * Out: r13:r12 and edx:eax, the TSC before and after a send (high:low halves)
 *
 * LFENCE on either side of RDTSC keeps the stamp between what comes before and
 * after it (SDM vol. 2B, RDTSC); the one behind WRMSR is needed because x2APIC
 * writes do not serialise (SDM vol. 3A, 11.12.3).
 */
	.balign 64
service_entry:
	cmp	$MG_SERVICE_SEND_XAPIC, %eax
	je	2f
	ja	3f
	lfence
	rdtsc
	lfence
	mov	%eax, %r12d
	mov	%edx, %r13d
	mov	%esi, %eax
	mov	%edi, %edx
	wrmsr
	lfence
	rdtsc
	iretq
2:	lfence
	rdtsc
	lfence
	mov	%eax, %r12d
	mov	%edx, %r13d
	mov	%edi, 0x10(%rbx)
	mov	%esi, (%rbx)
	lfence
	rdtsc
	iretq
3:	cmp	$MG_SERVICE_POST, %eax
	je	mg_post
	cmp	$MG_SERVICE_REPORT, %eax
	jne	mg_triple_fault
	mov	%esi, %eax
	mov	$MG_PORT, %edx
	out	%al, %dx
	iretq

/* An exception with an IDT of no entries */
mg_triple_fault:
	push	$0
	push	$0
	lidt	6(%rsp)
	ud2

	.section .note.GNU-stack, "", @progbits
