// SPDX-License-Identifier: GPL-2.0-only
/*
 * ipitrace-storm run: a storm, and its storm file on stdout.
 *
 * The module occupies the CPUs that send, and those that wait in kernel mode or in
 * HLT. Targets that run user code are children of this program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"

#define SPIN_UP_SECONDS 10

/* A child that spins on `cpu` in user mode until this process ends. */
static pid_t spin_on(unsigned int cpu, volatile bool *ready)
{
	const pid_t parent = getpid(), child = fork();
	cpu_set_t *set;

	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	set = CPU_ALLOC(MAX_CPUS);
	CPU_ZERO_S(CPU_ALLOC_SIZE(MAX_CPUS), set);
	CPU_SET_S(cpu, CPU_ALLOC_SIZE(MAX_CPUS), set);
	if (getppid() != parent || sched_setaffinity(0, CPU_ALLOC_SIZE(MAX_CPUS), set))
		_exit(1);
	*ready = true;
	for (;;)
		__builtin_ia32_pause();
}

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

struct spinner {
	pid_t pid;
	volatile bool ready;
};

static struct spinner *spinners; /* shared with the children; by CPU */

static void stop_spinning(void)
{
	for (unsigned int cpu = 0; cpu < MAX_CPUS; cpu++)
		if (spinners[cpu].pid > 0) {
			kill(spinners[cpu].pid, SIGKILL);
			waitpid(spinners[cpu].pid, NULL, 0);
		}
}

/* Keeps every target busy in user mode; the module occupies those that also send. */
static void spin(const struct storm_params *params)
{
	static bool online[MAX_CPUS];
	const bool all = params->pattern == STORM_BROADCAST;
	const double give_up_s = now_s() + SPIN_UP_SECONDS;

	if (params->target_state != STORM_RUNNING_USER ||
	    (params->pattern != STORM_UNICAST && params->pattern != STORM_BROADCAST))
		return;
	spinners = mmap(NULL, MAX_CPUS * sizeof(*spinners), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (spinners == MAP_FAILED)
		fail(EXIT_ENVIRONMENT, "no memory: %s", strerror(errno));
	atexit(stop_spinning);
	read_cpus(ONLINE, online);
	for (unsigned int cpu = 0; cpu < MAX_CPUS; cpu++) {
		if (!online[cpu] || cpu == params->sender || (!all && cpu != params->target))
			continue;
		spinners[cpu].pid = spin_on(cpu, &spinners[cpu].ready);
		if (spinners[cpu].pid < 0)
			fail(EXIT_ENVIRONMENT, "cannot fork: %s", strerror(errno));
	}
	for (unsigned int cpu = 0; cpu < MAX_CPUS; cpu++)
		while (spinners[cpu].pid && !spinners[cpu].ready) {
			if (now_s() > give_up_s || waitpid(-1, NULL, WNOHANG) > 0)
				fail(EXIT_ENVIRONMENT, "a user task cannot be bound to CPU %u",
				     cpu);
			usleep(1000);
		}
}

static int exit_code(int error)
{
	switch (error) {
	case EINVAL:
		return EXIT_USAGE;
	case ENODEV:
	case ETIME:
	case EINTR:
		return EXIT_STORM;
	}
	return EXIT_ENVIRONMENT;
}

static void read_all(int device, void *to, size_t size)
{
	for (size_t done = 0; done < size;) {
		const ssize_t n = read(device, (char *)to + done, size - done);

		if (n <= 0)
			fail(EXIT_STORM, "the module's records are truncated");
		done += n;
	}
}

static void write_all(const void *from, size_t size)
{
	for (size_t done = 0; done < size;) {
		const ssize_t n = write(STDOUT_FILENO, (const char *)from + done, size - done);

		if (n < 0 && errno != EINTR)
			fail(EXIT_ENVIRONMENT, "cannot write: %s", strerror(errno));
		done += n > 0 ? n : 0;
	}
}

static void copy_records(int device)
{
	static char block[1 << 18];
	struct storm_file file;
	ssize_t n;

	read_all(device, &file, sizeof(file));
	if (file.status.state != STORM_DONE)
		fail(EXIT_STORM,
		     "gave up: %u of %llu IPIs were not acknowledged within %llu cycles",
		     file.status.incomplete, file.status.sent, file.params.timeout_cycles);
	write_all(&file, sizeof(file));
	while ((n = read(device, block, sizeof(block))) > 0)
		write_all(block, n);
	if (n < 0)
		fail(EXIT_STORM, "cannot read the module's records: %s", strerror(errno));
}

/* Runs the storm, or only checks it with the module; returns the exit code. */
int run(const struct options *options)
{
	struct ipitrace_storm_request request = {.params = options->params};
	const int device = open_device();

	if (device < 0)
		fail(EXIT_ENVIRONMENT, "cannot open " DEVICE ": %s%s", strerror(errno),
		     errno == ENOENT ? " (is the module loaded?)" : "");
	if (!options->check_only)
		spin(&options->params);
	if (ioctl(device, options->check_only ? IPITRACE_STORM_CHECK : IPITRACE_STORM_RUN,
		  &request)) {
		const int error = errno;

		fail(exit_code(error), "%s", request.reason[0] ? request.reason : strerror(error));
	}
	if (!options->check_only)
		copy_records(device);
	return 0;
}
