// SPDX-License-Identifier: GPL-2.0-only
/*
 * ipistorm: runs storms through /dev/ipistorm. One static program, so that a
 * minimal guest needs nothing else.
 *
 * The module keeps the CPUs that send, and those that wait in kernel mode or in
 * HLT. Targets that run user code are this program's children.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipistorm_ioctl.h"

#define DEVICE "/dev/" IPISTORM_DEVICE
#define MODULE "/sys/module/" IPISTORM_DEVICE "/"
#define ONLINE "/sys/devices/system/cpu/online"
#define PRESENT "/sys/devices/system/cpu/present"
#define DEFAULT_INCOMPLETE 3
#define MAX_CPUS 8192
#define SPIN_UP_SECONDS 10

enum { EXIT_USAGE = 2, EXIT_ENVIRONMENT = 3, EXIT_STORM = 4 };

struct name {
	const char *name;
	unsigned int value;
};

static const struct name patterns[] = {
	{"unicast", STORM_UNICAST},
	{"self", STORM_SELF},
	{"broadcast", STORM_BROADCAST},
	{"ring", STORM_RING},
	{},
};

/* Blocked is halted for long: the pace makes the difference. */
static const struct name states[] = {
	{"running", STORM_RUNNING_USER},
	{"running-kernel", STORM_RUNNING_KERNEL},
	{"halted", STORM_HALTED},
	{"blocked", STORM_HALTED},
	{},
};

static const struct name methods[] = {
	{"x2apic", STORM_X2APIC},	    {"xapic", STORM_XAPIC},
	{"smp-call", STORM_SMP_CALL},	    {"pv-hypercall", STORM_PV_HYPERCALL},
	{"passthrough", STORM_PASSTHROUGH}, {},
};

static __attribute__((noreturn, format(printf, 2, 3))) void fail(int code, const char *why, ...)
{
	va_list arguments;

	va_start(arguments, why);
	fputs("ipistorm: ", stderr);
	vfprintf(stderr, why, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(code);
}

/* The text of a small file without its line end; false when there is none. */
static bool read_text(const char *path, char *text, size_t size)
{
	const int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (file < 0)
		return false;
	length = read(file, text, size - 1);
	close(file);
	if (length < 0)
		return false;
	text[length] = 0;
	text[strcspn(text, "\n")] = 0;
	return true;
}

/* Marks the CPUs of a list such as 0-3,8; answers how many there are. */
static unsigned int read_cpus(const char *path, bool cpus[MAX_CPUS])
{
	char text[4096], *at = text;
	unsigned int n = 0;

	memset(cpus, 0, MAX_CPUS * sizeof(*cpus));
	if (!read_text(path, text, sizeof(text)))
		fail(EXIT_ENVIRONMENT, "cannot read %s: %s (is /sys mounted?)", path,
		     strerror(errno));
	while (*at) {
		unsigned long first = strtoul(at, &at, 10), last = first;

		if (*at == '-')
			last = strtoul(at + 1, &at, 10);
		for (; first <= last && first < MAX_CPUS; first++, n++)
			cpus[first] = true;
		if (*at && *at++ != ',')
			fail(EXIT_ENVIRONMENT, "%s is no list of CPUs", path);
	}
	return n;
}

static int open_device(void)
{
	return open(DEVICE, O_RDWR | O_CLOEXEC);
}

/* What the module has against a request, or NULL. */
static const char *refusal(int device, struct ipistorm_request *request)
{
	if (!ioctl(device, IPISTORM_CHECK, request))
		return NULL;
	return request->reason[0] ? request->reason : strerror(errno);
}

/* status */

static void print_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		if ((unsigned char)*text >= ' ')
			putchar(*text);
	}
	putchar('"');
}

static void print_text_of(const char *key, const char *path)
{
	char text[256];

	printf(", \"%s\": ", key);
	if (read_text(path, text, sizeof(text)))
		print_string(text);
	else
		printf("null");
}

static void print_cpus(const bool cpus[MAX_CPUS])
{
	const char *comma = "";

	putchar('[');
	for (unsigned int cpu = 0; cpu < MAX_CPUS; cpu++) {
		if (!cpus[cpu])
			continue;
		printf("%s%u", comma, cpu);
		comma = ", ";
	}
	putchar(']');
}

/* A request that asks for nothing special: what is refused is the one thing changed in it. */
static struct ipistorm_request plain_request(const bool online[MAX_CPUS], bool x2apic)
{
	struct ipistorm_request request = {
		.params =
			{
				.abi_version = STORM_ABI_VERSION,
				.send_method = x2apic ? STORM_X2APIC : STORM_XAPIC,
				.target_state = STORM_RUNNING_KERNEL,
				.count = 1,
				.timeout_cycles = 1000,
			},
	};
	unsigned int cpu = 0;

	while (cpu < MAX_CPUS - 1 && !online[cpu])
		cpu++;
	request.params.sender = cpu++;
	while (cpu < MAX_CPUS - 1 && !online[cpu])
		cpu++;
	request.params.target = cpu;
	return request;
}

/* Asks the module about each name, put into `field` of an otherwise plain request. */
static const char *print_refusals(int device, const struct ipistorm_request *plain,
				  const struct name *names, size_t field, const char *comma)
{
	for (; names->name; names++) {
		struct ipistorm_request request = *plain;
		const char *why;

		memcpy((char *)&request.params + field, &names->value, sizeof(names->value));
		why = refusal(device, &request);
		if (!why)
			continue;
		printf("%s\"%s\": ", comma, names->name);
		print_string(why);
		comma = ", ";
	}
	return comma;
}

static void print_unsupported(int device, const bool online[MAX_CPUS], bool x2apic)
{
	const struct ipistorm_request plain = plain_request(online, x2apic);
	const char *comma = "";

	comma = print_refusals(device, &plain, patterns, offsetof(struct storm_params, pattern),
			       comma);
	comma = print_refusals(device, &plain, states, offsetof(struct storm_params, target_state),
			       comma);
	print_refusals(device, &plain, methods, offsetof(struct storm_params, send_method), comma);
}

static int status(void)
{
	static bool online[MAX_CPUS], present[MAX_CPUS];
	const bool loaded = !access(MODULE "refcnt", F_OK);
	const int device = open_device();
	struct ipistorm_guest guest = {};
	const unsigned int n_present = read_cpus(PRESENT, present);
	struct utsname name;

	if (loaded && device < 0)
		fail(EXIT_ENVIRONMENT, "cannot open " DEVICE ": %s", strerror(errno));
	if (device >= 0 && ioctl(device, IPISTORM_GET_GUEST, &guest))
		fail(EXIT_ENVIRONMENT, DEVICE " is not what this helper expects: %s",
		     strerror(errno));
	uname(&name);
	read_cpus(ONLINE, online);
	printf("{\"abi_version\": %u, \"helper_version\": \"%s\"", STORM_ABI_VERSION,
	       IPISTORM_VERSION);
	printf(", \"module\": {\"loaded\": %s", loaded ? "true" : "false");
	print_text_of("version", MODULE "version");
	print_text_of("srcversion", MODULE "srcversion");
	printf("}, \"kernel\": ");
	print_string(name.release);
	printf(", \"n_cpus\": %u, \"online\": ", n_present);
	print_cpus(online);
	if (device < 0) {
		printf(", \"apic_mode\": null, \"tsc_khz\": null, \"tsc_unstable\": null, "
		       "\"unsupported\": {}}\n");
		return 0;
	}
	printf(", \"apic_mode\": \"%s\", \"tsc_khz\": %llu, \"tsc_unstable\": %s, \"unsupported\": "
	       "{",
	       guest.x2apic ? "x2apic" : "xapic", guest.tsc_khz,
	       guest.tsc_unstable ? "true" : "false");
	print_unsupported(device, online, guest.x2apic);
	printf("}}\n");
	return 0;
}

/* run */

static unsigned int number_of(const struct name *names, const char *option, const char *given)
{
	for (; names->name; names++)
		if (!strcmp(names->name, given))
			return names->value;
	fail(EXIT_USAGE, "--%s: there is no %s; see ipistorm --help", option, given);
}

static unsigned long long parse_number(const char *option, const char *given)
{
	char *end;
	unsigned long long number;

	errno = 0;
	number = strtoull(given, &end, 10);
	if (*given < '0' || *given > '9' || *end || errno)
		fail(EXIT_USAGE, "--%s: %s is no number", option, given);
	return number;
}

static unsigned int parse_cpu(const char *option, const char *given)
{
	const unsigned long long cpu = parse_number(option, given);

	if (cpu >= MAX_CPUS)
		fail(EXIT_USAGE, "--%s: there is no CPU %s", option, given);
	return cpu;
}

enum {
	PATTERN = 1,
	STATE,
	METHOD,
	SENDER,
	TARGET,
	WARMUP,
	COUNT,
	PACE,
	TIMEOUT,
	BURN,
	INCOMPLETE,
	LOSE_ONE,
	CHECK
};

struct options {
	struct storm_params params;
	bool check_only;
};

static struct options parse(int n_words, char **words)
{
	static const struct option known[] = {
		{"pattern", required_argument, NULL, PATTERN},
		{"state", required_argument, NULL, STATE},
		{"method", required_argument, NULL, METHOD},
		{"sender", required_argument, NULL, SENDER},
		{"target", required_argument, NULL, TARGET},
		{"warmup", required_argument, NULL, WARMUP},
		{"count", required_argument, NULL, COUNT},
		{"pace-cycles", required_argument, NULL, PACE},
		{"timeout-cycles", required_argument, NULL, TIMEOUT},
		{"burn-cycles", required_argument, NULL, BURN},
		{"max-incomplete", required_argument, NULL, INCOMPLETE},
		{"lose-one", no_argument, NULL, LOSE_ONE},
		{"check", no_argument, NULL, CHECK},
		{},
	};
	static const int mandatory[] = {PATTERN, STATE, METHOD, COUNT, TIMEOUT};
	struct options options = {.params = {.abi_version = STORM_ABI_VERSION,
					     .max_incomplete = DEFAULT_INCOMPLETE,
					     .target = MAX_CPUS}};
	struct storm_params *params = &options.params;
	unsigned long long seen = 0, number;
	int which, index;

	opterr = 0;
	while ((which = getopt_long(n_words, words, ":", known, &index)) != -1) {
		const char *name = which == '?' || which == ':' ? "" : known[index].name;

		if (which == '?' || which == ':')
			fail(EXIT_USAGE, "%s %s; see ipistorm --help", words[optind - 1],
			     which == ':' ? "needs a value" : "is no option of run");
		seen |= 1ull << which;
		switch (which) {
		case PATTERN:
			params->pattern = number_of(patterns, name, optarg);
			break;
		case STATE:
			params->target_state = number_of(states, name, optarg);
			break;
		case METHOD:
			params->send_method = number_of(methods, name, optarg);
			break;
		case SENDER:
			params->sender = parse_cpu(name, optarg);
			break;
		case TARGET:
			params->target = parse_cpu(name, optarg);
			break;
		case WARMUP:
			params->warmup = parse_number(name, optarg);
			break;
		case COUNT:
			params->count = parse_number(name, optarg);
			break;
		case PACE:
			params->pace_cycles = parse_number(name, optarg);
			break;
		case TIMEOUT:
			params->timeout_cycles = parse_number(name, optarg);
			break;
		case BURN:
			params->handler_burn_cycles = parse_number(name, optarg);
			break;
		case INCOMPLETE:
			number = parse_number(name, optarg);
			params->max_incomplete = number > ~0u ? ~0u : number;
			break;
		case LOSE_ONE:
			params->inject = STORM_INJECT_LOST_IPI;
			break;
		case CHECK:
			options.check_only = true;
			break;
		}
	}
	if (optind < n_words)
		fail(EXIT_USAGE, "%s: not understood; see ipistorm --help", words[optind]);
	for (index = 0; index < (int)(sizeof(mandatory) / sizeof(*mandatory)); index++)
		if (!(seen & 1ull << mandatory[index]))
			fail(EXIT_USAGE, "run needs --%s", known[mandatory[index] - 1].name);
	if (params->pattern == STORM_UNICAST && !(seen & 1ull << TARGET))
		fail(EXIT_USAGE, "--pattern unicast needs --target");
	if (params->pattern != STORM_UNICAST)
		params->target = 0;
	return options;
}

/* A child that does nothing but use `cpu` in user mode, for as long as this process lives. */
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

/* Keeps every target busy in user mode; the module keeps those that also send. */
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
				fail(EXIT_ENVIRONMENT, "no user task can be kept on CPU %u", cpu);
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
			fail(EXIT_STORM, "the module's records end early");
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

static int run(int n_words, char **words)
{
	const struct options options = parse(n_words, words);
	struct ipistorm_request request = {.params = options.params};
	const int device = open_device();

	if (device < 0)
		fail(EXIT_ENVIRONMENT, "cannot open " DEVICE ": %s%s", strerror(errno),
		     errno == ENOENT ? " (is the module loaded?)" : "");
	if (!options.check_only)
		spin(&options.params);
	if (ioctl(device, options.check_only ? IPISTORM_CHECK : IPISTORM_RUN, &request)) {
		const int error = errno;

		fail(exit_code(error), "%s", request.reason[0] ? request.reason : strerror(error));
	}
	if (!options.check_only)
		copy_records(device);
	return 0;
}

static void print_names(const char *option, const struct name *names)
{
	printf("  --%-8s", option);
	for (; names->name; names++)
		printf(" %s", names->name);
	putchar('\n');
}

static int help(void)
{
	puts("ipistorm status    one line of JSON: the guest, and what it cannot do\n"
	     "ipistorm run ...   runs a storm and writes its storm file to stdout");
	print_names("pattern", patterns);
	print_names("state", states);
	print_names("method", methods);
	puts("  --sender CPU           that sends; every CPU does in a ring (0)\n"
	     "  --target CPU           of a unicast\n"
	     "  --count N              IPIs to measure\n"
	     "  --warmup N             IPIs before them (0)\n"
	     "  --pace-cycles N        from an acknowledgement to the next send (0)\n"
	     "  --timeout-cycles N     for each acknowledgement\n"
	     "  --max-incomplete N     give up after more IPIs than this timed out (3)\n"
	     "  --burn-cycles N        waste cycles in each handler (0)\n"
	     "  --lose-one             leave out one IPI, to see that it is missed\n"
	     "  --check                only say whether it could be run\n"
	     "Exit codes: 0 done, 2 usage, 3 this guest cannot do it, 4 the storm failed.");
	return 0;
}

int main(int n_words, char **words)
{
	const char *verb = n_words > 1 ? words[1] : "";

	if (!strcmp(verb, "run"))
		return run(n_words - 1, words + 1);
	if (n_words == 2 && !strcmp(verb, "status"))
		return status();
	if (n_words == 2 && !strcmp(verb, "--help"))
		return help();
	if (n_words == 2 && !strcmp(verb, "--version")) {
		puts(IPISTORM_VERSION);
		return 0;
	}
	fail(EXIT_USAGE, "say status or run; see ipistorm --help");
}
