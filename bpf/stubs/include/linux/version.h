/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel checks a program's version for kprobes on kernels before 5.0 only,
 * and we have no kprobes: nothing here depends on a kernel version.
 */
#define LINUX_VERSION_CODE 0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
