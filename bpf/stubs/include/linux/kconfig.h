/* SPDX-License-Identifier: GPL-2.0-only */
/* Force-included by bcc before anything else. */
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
