// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which thread enters which vCPU: a separate unit, loaded for a short time by
 * ipitrace/tracer/vcpu_entries.py. User space sets by -D: VCPU_ID, the place of
 * the vCPU's id in the classic tracepoint's record.
 */
struct record {
	char before[VCPU_ID];
	u32 vcpu_id;
};

BPF_HASH(vcpu_of_tid, u32, u32, 16384);

int entered(struct record *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 vcpu_id = ctx->vcpu_id;

	vcpu_of_tid.update(&tid, &vcpu_id);
	return 0;
}
