/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a probe names its program and reads its fields, whatever it is hooked to.
 * User space sets by -D, for each attached event X: HAVE_X, HOOK_X (RAW, CLASSIC,
 * KPROBE or KRETPROBE), and ARG_X_field (a raw argument's position from 0, a format
 * column's name, or a function argument's position from 1).
 */
#ifndef IPITRACE_PROBE_H
#define IPITRACE_PROBE_H

/* FIELD(x, f): a raw argument, a column of the tracepoint's record, a function's argument. */
#define CTX_RAW(event) struct bpf_raw_tracepoint_args
#define CTX_CLASSIC(event) struct event##_record
#define CTX_KPROBE(event) struct pt_regs
#define CTX_KRETPROBE(event) struct pt_regs
#define CTX_2(hook, event) CTX_##hook(event)
#define CTX_1(hook, event) CTX_2(hook, event)
#define PROBE(event) int probe_##event(CTX_1(HOOK_##event, event) * ctx)

#define FIELD_RAW(place) ctx->args[place]
#define FIELD_CLASSIC(place) ctx->place
#define FIELD_KPROBE(place) PT_REGS_PARM##place(ctx)
#define FIELD_2(hook, place) FIELD_##hook(place)
#define FIELD_1(hook, place) FIELD_2(hook, place)
#define FIELD(event, field) FIELD_1(HOOK_##event, ARG_##event##_##field)

#define MMAPABLE 1024 /* BPF_F_MMAPABLE */
#define compiler_barrier() asm volatile("" ::: "memory")

#endif
