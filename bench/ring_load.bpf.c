// SPDX-License-Identifier: GPL-2.0-only
/*
 * Follows bpf/ring.bpf.c in one translation unit and writes its rings as fast as a
 * thread can make system calls: BURST records for each.
 */
int probe_ring_load(struct bpf_raw_tracepoint_args *ctx)
{
	int vcpu = this_vcpu();

	if (vcpu < 0)
		return 0;
#pragma unroll
	for (int i = 0; i < BURST; i++)
		record(vcpu, 0, 0, i, 0);
	return 0;
}
