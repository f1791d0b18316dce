// SPDX-License-Identifier: GPL-2.0-only
/* ipitrace-storm status: the guest, and what it does not support, as one line of JSON. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "helper.h"

#define MODULE "/sys/module/" IPITRACE_STORM_DEVICE "/"
#define PRESENT "/sys/devices/system/cpu/present"

/* Why the module refuses a request, or NULL. */
static const char *refusal(int device, struct ipitrace_storm_request *request)
{
	if (!ioctl(device, IPITRACE_STORM_CHECK, request))
		return NULL;
	return request->reason[0] ? request->reason : strerror(errno);
}

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

/* A plain request: if a change of one field is refused, the reason is that field. */
static struct ipitrace_storm_request plain_request(const bool online[MAX_CPUS], bool x2apic)
{
	struct ipitrace_storm_request request = {
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

/* Checks each name with the module, in `field` of an otherwise plain request. */
static const char *print_refusals(int device, const struct ipitrace_storm_request *plain,
				  const struct name *names, size_t field, const char *comma)
{
	for (; names->name; names++) {
		struct ipitrace_storm_request request = *plain;
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
	struct ipitrace_storm_request plain = plain_request(online, x2apic);
	const char *comma = "";

	if (refusal(device, &plain)) /* its kernel uses Passthrough IPI */
		plain.params.send_method = STORM_PASSTHROUGH;
	comma = print_refusals(device, &plain, patterns, offsetof(struct storm_params, pattern),
			       comma);
	comma = print_refusals(device, &plain, states, offsetof(struct storm_params, target_state),
			       comma);
	print_refusals(device, &plain, methods, offsetof(struct storm_params, send_method), comma);
}

int status(void)
{
	static bool online[MAX_CPUS], present[MAX_CPUS];
	const bool loaded = !access(MODULE "refcnt", F_OK);
	const int device = open_device();
	struct ipitrace_storm_guest guest = {};
	const unsigned int n_present = read_cpus(PRESENT, present);
	struct utsname name;

	if (loaded && device < 0)
		fail(EXIT_ENVIRONMENT, "cannot open " DEVICE ": %s", strerror(errno));
	if (device >= 0 && ioctl(device, IPITRACE_STORM_GET_GUEST, &guest))
		fail(EXIT_ENVIRONMENT, DEVICE " does not match this helper: %s", strerror(errno));
	uname(&name);
	read_cpus(ONLINE, online);
	printf("{\"abi_version\": %u, \"helper_version\": \"%s\"", STORM_ABI_VERSION,
	       IPITRACE_STORM_VERSION);
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
