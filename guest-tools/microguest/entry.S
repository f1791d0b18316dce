/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The micro-guest's entry point, its interrupt handlers and its waiting loops.
 *
 * Plain x86-64, correct on any KVM backend. Code for user mode (CPL 3) contains
 * no sensitive instruction that does not trap there.
 *
 * Both sender and targets run in user mode. They enter kernel mode only if
 * necessary: for the sender's service, a dozen instructions around the send, and
 * for the handlers. On VMX and SVM this does not change the measured times. If
 * guest kernel mode is emulated, it keeps the emulator out of the figures.
 *
 * Registers: r15 always points to this vCPU's struct mg_vcpu. A target uses no
 * other register while it waits: the first instruction of its handler can
 * therefore be the RDTSC of its stamp. The sender is C code with live registers;
 * -ffixed-* reserves r8-r11 for its handler.
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

/* rdtsc into rax; clobbers rdx */
.macro READ_TSC
	rdtsc
	shl	$32, %rdx
	or	%rdx, %rax
.endm

/* Sends the EOI to the local APIC; clobbers rax, rcx and rdx. */
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
 * EOI comes before the acknowledgement, as in Linux's handlers: when the next
 * IPI arrives, this one is never in service. Clobbers rax, rcx, rdx and r11.
 *
 * With `burn` it spends handler_burn_cycles before the acknowledgement: R grows
 * by them, S and D do not. It has separate entries: the others contain no
 * instruction for it. The cycles are counted from the stamp after the EOI, which
 * both kinds of handler take. From that stamp to the acknowledgement, the others
 * execute six instructions after RDTSC. This one executes four after the loop's
 * last RDTSC, which is up to one turn of the loop (five instructions, two on
 * average) late: R grows by handler_burn_cycles, more or less half a turn.
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
	.if \burn
	READ_TSC
	.endif
5:
	.if \burn
	add	MG_PARAMS + MG_PARAMS_BURN, %rax
	mov	%rax, %r11
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
 * Exceptions except INT3: vector, error code (0 if the CPU pushes none), then the
 * CPU's frame.
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

/* void mg_wait_halted(void): one HLT after another, interrupts enabled */
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

/* void mg_open_window(u64 sent): interrupts on until the sender counts more; rdi is preserved */
	.globl	mg_open_window
mg_open_window:
	sti
1:	pause
	cmp	%rdi, MG_STATUS + 8
	je	1b
	cli
	ret

/* void mg_wait_user(void): spins in user mode; interrupts use TSS.RSP0 */
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

/* void mg_sender_in_user_mode(void): continues in mg_sender(), interrupts enabled */
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
 * The sender's service, by INT3, which every KVM backend delivers. (On some
 * backends KVM's instruction emulator runs guest kernel mode, and it does not
 * support INT n in long mode.) The gate leaves interrupts enabled: an IPI to the
 * sender itself is delivered as soon as possible.
 *
 * In:  eax which service; rbx the xAPIC's ICR, ecx the MSR, esi and edi what to
 *      write into the ICR's halves; or esi the state to report; or see mg_post, mg_vmcall
 * Out: r13:r12 and edx:eax, the TSC before and after a send (high:low halves)
 *
 * LFENCE on both sides of RDTSC orders the stamp with the code before and after
 * it (SDM vol. 2B, RDTSC). The one after WRMSR is needed because x2APIC writes do
 * not serialise (SDM vol. 3A, 11.12.3).
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
	cmp	$MG_SERVICE_VMCALL, %eax
	je	mg_vmcall
	cmp	$MG_SERVICE_VMMCALL, %eax
	je	mg_vmmcall
	cmp	$MG_SERVICE_HV, %eax
	je	mg_hv_send
	cmp	$MG_SERVICE_REPORT, %eax
	jne	mg_triple_fault
	mov	%esi, %eax
	mov	$MG_PORT, %edx
	out	%al, %dx
	iretq

/* An exception with an empty IDT */
mg_triple_fault:
	push	$0
	push	$0
	lidt	6(%rsp)
	ud2

	.section .note.GNU-stack, "", @progbits
