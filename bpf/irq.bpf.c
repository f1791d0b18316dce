// SPDX-License-Identifier: GPL-2.0-only
/* The host's own IPIs: those that a vCPU's thread sends, and those that interrupt it. */

RECORD(reschedule_entry, 0, 0, FIELD(reschedule_entry, vector))

RECORD(call_function_entry, 0, 0, FIELD(call_function_entry, vector))

RECORD(call_function_single_entry, 0, 0, FIELD(call_function_single_entry, vector))

RECORD(ipi_send_cpu, 0, FIELD(ipi_send_cpu, cpu), 0)
