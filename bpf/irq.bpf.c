// SPDX-License-Identifier: GPL-2.0-only
/* The host's own IPIs: what a vCPU's thread sends, and what interrupts it. */

#ifdef HAVE_reschedule_entry
PROBE(reschedule_entry)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_reschedule_entry, 0, 0, FIELD(reschedule_entry, vector));
	return 0;
}
#endif

#ifdef HAVE_call_function_entry
PROBE(call_function_entry)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_call_function_entry, 0, 0, FIELD(call_function_entry, vector));
	return 0;
}
#endif

#ifdef HAVE_call_function_single_entry
PROBE(call_function_single_entry)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_call_function_single_entry, 0, 0,
		       FIELD(call_function_single_entry, vector));
	return 0;
}
#endif

#ifdef HAVE_ipi_send_cpu
PROBE(ipi_send_cpu)
{
	int vcpu = this_vcpu();

	if (vcpu >= 0)
		record(vcpu, ROW_ipi_send_cpu, 0, FIELD(ipi_send_cpu, cpu), 0);
	return 0;
}
#endif
