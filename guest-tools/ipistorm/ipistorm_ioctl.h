/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module and its helper say to each other through /dev/ipistorm. */
#ifndef IPISTORM_IOCTL_H
#define IPISTORM_IOCTL_H

#include <linux/ioctl.h>

#include "storm_abi.h"

#define IPISTORM_VERSION "1.0" /* dkms.conf says it, too */
#define IPISTORM_DEVICE "ipistorm"

/* Why a request failed, in words; empty where errno says it all. */
struct ipistorm_request {
	struct storm_params params; /* n_vcpus and sends are the module's: leave them 0 */
	char reason[168];
};

struct ipistorm_guest {
	unsigned int abi_version;
	unsigned int x2apic; /* the APICs are in x2APIC mode, else in xAPIC mode */
	unsigned int tsc_unstable; /* the kernel's verdict: CPUs may not agree on the TSC */
	unsigned int reserved;
	unsigned long long tsc_khz;
};

/* Fills in struct ipistorm_guest. */
#define IPISTORM_GET_GUEST _IOR('i', 0x70, struct ipistorm_guest)
/* Says whether IPISTORM_RUN would be refused. */
#define IPISTORM_CHECK _IOWR('i', 0x71, struct ipistorm_request)
/* Runs a storm; afterwards reading from the file's start gives a struct storm_file. */
#define IPISTORM_RUN _IOWR('i', 0x72, struct ipistorm_request)

#endif
