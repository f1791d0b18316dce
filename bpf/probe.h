/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a probe names its program and reads its fields, for every kind of hook.
 * User space sets by -D, for each attached event X: HAVE_X, HOOK_X (RAW, CLASSIC,
 * KPROBE, KRETPROBE, FENTRY or FEXIT), N_ARGS_X (the number of the function's arguments)
 * for FENTRY and FEXIT, and for each field that this kernel has:
 * HAVE_ARG_X_field, and ARG_X_field (a raw argument's position from 0, a format column's
 * name, or a function argument's position from 1).
 */
#ifndef IPITRACE_PROBE_H
#define IPITRACE_PROBE_H

/* PICK(flag, yes, no): `yes` if -D set the flag; works like the kernel's IS_ENABLED(). */
#define PLACEHOLDER_1 0,
#define TAKE_SECOND(first, second, ...) second
#define PICK_2(junk, yes, no) TAKE_SECOND(junk yes, no, )
#define PICK_1(flag, yes, no) PICK_2(PLACEHOLDER_##flag, yes, no)
#define PICK(flag, yes, no) PICK_1(flag, yes, no)

/* IF_HAVE(x, text): the text if the event is attached, else nothing. */
#define KEEP(...) __VA_ARGS__
#define DROP(...)
#define IF_HAVE(event, ...) PICK(HAVE_##event, KEEP, DROP)(__VA_ARGS__)

/* FIELD(x, f): a raw argument, a column of the tracepoint's record, a function's argument. */
#define CTX_RAW(event) struct bpf_raw_tracepoint_args
#define CTX_CLASSIC(event) struct event##_record
#define CTX_KPROBE(event) struct pt_regs
#define CTX_KRETPROBE(event) struct pt_regs
#define CTX_FENTRY(event) u64 /* the arguments */
#define CTX_FEXIT(event) u64 /* the arguments, then the return value */
#define CTX_2(hook, event) CTX_##hook(event)
#define CTX_1(hook, event) CTX_2(hook, event)

/* A function's event can have two programs, of which user space loads one. */
#define NAME_RAW(event) probe_##event
#define NAME_CLASSIC(event) probe_##event
#define NAME_KPROBE(event) probe_##event
#define NAME_KRETPROBE(event) probe_##event
#define NAME_FENTRY(event) fentry_##event
#define NAME_FEXIT(event) fexit_##event
#define NAME_2(hook, event) NAME_##hook(event)
#define NAME_1(hook, event) NAME_2(hook, event)
#define PROBE(event) int NAME_1(HOOK_##event, event)(CTX_1(HOOK_##event, event) * ctx)

#define FIELD_RAW(place) ctx->args[place]
#define FIELD_CLASSIC(place) ctx->place
#define FIELD_KPROBE(place) PT_REGS_PARM##place(ctx)
#define FIELD_FENTRY(place) ctx[(place) - 1]
#define FIELD_2(hook, place) FIELD_##hook(place)
#define FIELD_1(hook, place) FIELD_2(hook, place)
#define FIELD(event, field) FIELD_1(HOOK_##event, ARG_##event##_##field)
#define FIELD_OR(event, field, otherwise) \
	PICK(HAVE_ARG_##event##_##field, FIELD(event, field), otherwise)

/* RETURNED(x): the return value of a function that is hooked on return. */
#define RETURNED_KRETPROBE(event) PT_REGS_RC(ctx)
#define RETURNED_FEXIT(event) ctx[N_ARGS_##event]
#define RETURNED_2(hook, event) RETURNED_##hook(event)
#define RETURNED_1(hook, event) RETURNED_2(hook, event)
#define RETURNED(event) RETURNED_1(HOOK_##event, event)

#define MSR_X2APIC_ICR 0x830
#define MSR_X2APIC_SELF_IPI 0x83f
#define KVM_HC_SEND_IPI 10

static __always_inline bool is_icr_msr(u32 msr)
{
	return msr == MSR_X2APIC_ICR || msr == MSR_X2APIC_SELF_IPI;
}

#define MMAPABLE 1024 /* BPF_F_MMAPABLE */
#define compiler_barrier() asm volatile("" ::: "memory")

#endif
