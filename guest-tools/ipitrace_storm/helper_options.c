// SPDX-License-Identifier: GPL-2.0-only
/* The helper's command line. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

#define DEFAULT_INCOMPLETE 3

const struct name patterns[] = {
	{"unicast", STORM_UNICAST},
	{"self", STORM_SELF},
	{"broadcast", STORM_BROADCAST},
	{"ring", STORM_RING},
	{},
};

/* A blocked target is halted for longer: only the pace differs. */
const struct name states[] = {
	{"running", STORM_RUNNING_USER},
	{"running-kernel", STORM_RUNNING_KERNEL},
	{"halted", STORM_HALTED},
	{"blocked", STORM_HALTED},
	{},
};

const struct name methods[] = {
	{"x2apic", STORM_X2APIC},	    {"xapic", STORM_XAPIC},
	{"smp-call", STORM_SMP_CALL},	    {"pv-hypercall", STORM_PV_HYPERCALL},
	{"passthrough", STORM_PASSTHROUGH}, {},
};

static unsigned int number_of(const struct name *names, const char *option, const char *given)
{
	for (; names->name; names++)
		if (!strcmp(names->name, given))
			return names->value;
	fail(EXIT_USAGE, "--%s: there is no %s; see ipitrace-storm --help", option, given);
}

static unsigned long long parse_number(const char *option, const char *given)
{
	char *end;
	unsigned long long number;

	errno = 0;
	number = strtoull(given, &end, 10);
	if (*given < '0' || *given > '9' || *end || errno)
		fail(EXIT_USAGE, "--%s: %s is not a number", option, given);
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

struct options parse(int n_words, char **words)
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
			fail(EXIT_USAGE, "%s %s; see ipitrace-storm --help", words[optind - 1],
			     which == ':' ? "needs a value" : "is not an option of run");
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
		fail(EXIT_USAGE, "%s: not understood; see ipitrace-storm --help", words[optind]);
	for (index = 0; index < (int)(sizeof(mandatory) / sizeof(*mandatory)); index++)
		if (!(seen & 1ull << mandatory[index]))
			fail(EXIT_USAGE, "run needs --%s", known[mandatory[index] - 1].name);
	if (params->pattern == STORM_UNICAST && !(seen & 1ull << TARGET))
		fail(EXIT_USAGE, "--pattern unicast needs --target");
	if (params->pattern != STORM_UNICAST)
		params->target = 0;
	return options;
}

static void print_names(const char *option, const struct name *names)
{
	printf("  --%-8s", option);
	for (; names->name; names++)
		printf(" %s", names->name);
	putchar('\n');
}

int help(void)
{
	puts("ipitrace-storm status    one line of JSON: the guest, and what it does not support\n"
	     "ipitrace-storm run ...   runs a storm and writes its storm file to stdout");
	print_names("pattern", patterns);
	print_names("state", states);
	print_names("method", methods);
	puts("  --sender CPU           CPU that sends; in a ring every CPU sends (0)\n"
	     "  --target CPU           target of a unicast\n"
	     "  --count N              IPIs to measure\n"
	     "  --warmup N             IPIs before them (0)\n"
	     "  --pace-cycles N        cycles from an acknowledgement to the next send (0)\n"
	     "  --timeout-cycles N     time limit of each acknowledgement\n"
	     "  --max-incomplete N     stop after more than N time-outs (3)\n"
	     "  --burn-cycles N        use cycles in each handler (0)\n"
	     "  --lose-one             do not send one IPI, to test its detection\n"
	     "  --check                only check whether the storm can be run\n"
	     "Exit codes: 0 done, 2 usage, 3 not supported by this guest, 4 the storm failed.");
	return 0;
}
