// SPDX-License-Identifier: GPL-2.0-only
/*
 * ipitrace-storm: runs storms through /dev/ipitrace_storm. It is one static program:
 * a minimal guest needs nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helper.h"

/* Prints one line for the user and exits. */
void fail(int code, const char *why, ...)
{
	va_list arguments;

	va_start(arguments, why);
	fputs("ipitrace-storm: ", stderr);
	vfprintf(stderr, why, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(code);
}

/* Reads the text of a small file without its line end; false if it cannot be read. */
bool read_text(const char *path, char *text, unsigned long size)
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

/* Marks the CPUs of a list like 0-3,8; returns their number. */
unsigned int read_cpus(const char *path, bool cpus[MAX_CPUS])
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
			fail(EXIT_ENVIRONMENT, "%s is not a list of CPUs", path);
	}
	return n;
}

int open_device(void)
{
	return open(DEVICE, O_RDWR | O_CLOEXEC);
}

int main(int n_words, char **words)
{
	const char *verb = n_words > 1 ? words[1] : "";

	if (!strcmp(verb, "run")) {
		const struct options options = parse(n_words - 1, words + 1);

		return run(&options);
	}
	if (n_words == 2 && !strcmp(verb, "status"))
		return status();
	if (n_words == 2 && !strcmp(verb, "--help"))
		return help();
	if (n_words == 2 && !strcmp(verb, "--version")) {
		puts(IPITRACE_STORM_VERSION);
		return 0;
	}
	fail(EXIT_USAGE, "the command is missing: status or run; see ipitrace-storm --help");
}
