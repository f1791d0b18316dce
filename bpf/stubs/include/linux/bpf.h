/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc's own copy, so that helper ids always match the installed bcc. */
#include <bcc/bpf.h>
