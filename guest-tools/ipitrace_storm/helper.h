/* SPDX-License-Identifier: GPL-2.0-only */
/* Shared by the helper's files. */
#ifndef IPITRACE_STORM_HELPER_H
#define IPITRACE_STORM_HELPER_H

#include <stdbool.h>

#include "ipitrace_storm_ioctl.h"

#define DEVICE "/dev/" IPITRACE_STORM_DEVICE
#define ONLINE "/sys/devices/system/cpu/online"
#define MAX_CPUS 8192

enum { EXIT_USAGE = 2, EXIT_ENVIRONMENT = 3, EXIT_STORM = 4 };

struct name {
	const char *name;
	unsigned int value;
};

extern const struct name patterns[], states[], methods[];

struct options {
	struct storm_params params;
	bool check_only;
};

/* helper.c */
void fail(int code, const char *why, ...) __attribute__((noreturn, format(printf, 2, 3)));
bool read_text(const char *path, char *text, unsigned long size);
unsigned int read_cpus(const char *path, bool cpus[MAX_CPUS]);
int open_device(void);

/* helper_options.c */
struct options parse(int n_words, char **words);
int help(void);

/* helper_status.c */
int status(void);

/* helper_run.c */
int run(const struct options *options);

#endif
