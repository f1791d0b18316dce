/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module and its helper say to each other through /dev/ipitrace_storm. */
#ifndef IPITRACE_STORM_IOCTL_H
#define IPITRACE_STORM_IOCTL_H

#include <linux/ioctl.h>

#include "storm_abi.h"

#define IPITRACE_STORM_VERSION "1.0" /* dkms.conf says it, too */
#define IPITRACE_STORM_DEVICE "ipitrace_storm"

/* Why a request failed, in words; empty where errno says it all. */
struct ipitrace_storm_request {
	struct storm_params params; /* n_vcpus and sends are the module's: leave them 0 */
	char reason[168];
};

struct ipitrace_storm_guest {
	unsigned int abi_version;
	unsigned int x2apic; /* the APICs are in x2APIC mode, else in xAPIC mode */
	unsigned int tsc_unstable; /* the kernel's verdict: CPUs may not agree on the TSC */
	unsigned int reserved;
	unsigned long long tsc_khz;
};

/* Fills in struct ipitrace_storm_guest. */
#define IPITRACE_STORM_GET_GUEST _IOR('i', 0x70, struct ipitrace_storm_guest)
/* Says whether IPITRACE_STORM_RUN would be refused. */
#define IPITRACE_STORM_CHECK _IOWR('i', 0x71, struct ipitrace_storm_request)
/* Runs a storm; afterwards reading from the file's start gives a struct storm_file. */
#define IPITRACE_STORM_RUN _IOWR('i', 0x72, struct ipitrace_storm_request)

#endif
