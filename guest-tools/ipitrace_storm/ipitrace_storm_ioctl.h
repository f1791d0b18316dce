/* SPDX-License-Identifier: GPL-2.0-only */
/* The interface of the module and its helper through /dev/ipitrace_storm. */
#ifndef IPITRACE_STORM_IOCTL_H
#define IPITRACE_STORM_IOCTL_H

#include <linux/ioctl.h>

#include "storm_abi.h"

#define IPITRACE_STORM_VERSION "1.0" /* also in dkms.conf */
#define IPITRACE_STORM_DEVICE "ipitrace_storm"

/* Why a request failed, as text; empty if errno is sufficient. */
struct ipitrace_storm_request {
	struct storm_params params; /* n_vcpus and sends must be 0: the module sets them */
	char reason[168];
};

struct ipitrace_storm_guest {
	unsigned int abi_version;
	unsigned int x2apic; /* the APICs are in x2APIC mode, else in xAPIC mode */
	unsigned int tsc_unstable; /* the kernel's state: the CPUs' TSCs may differ */
	unsigned int reserved;
	unsigned long long tsc_khz;
};

/* Fills in struct ipitrace_storm_guest. */
#define IPITRACE_STORM_GET_GUEST _IOR('i', 0x70, struct ipitrace_storm_guest)
/* Checks whether IPITRACE_STORM_RUN would be refused. */
#define IPITRACE_STORM_CHECK _IOWR('i', 0x71, struct ipitrace_storm_request)
/* Runs a storm; afterwards read() from the start returns a struct storm_file. */
#define IPITRACE_STORM_RUN _IOWR('i', 0x72, struct ipitrace_storm_request)

#endif
