/* SPDX-License-Identifier: GPL-2.0-only */
/* The registers of x86-64 in the order the kernel saves them; bcc's macros name them. */
#ifndef IPITRACE_STUB_PTRACE_H
#define IPITRACE_STUB_PTRACE_H

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};

#endif
