# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Functions that the scripts share; source this file from the top of the checkout.

# Print a command so that it can be pasted into a shell, then run it.
run() {
	printf '+'
	for word in "$@"; do
		case $word in
		'' | *[!A-Za-z0-9_./:=+@%,-]*)
			printf " '%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
		*) printf ' %s' "$word" ;;
		esac
	done
	printf '\n'
	"$@"
}

# Exit with code $1 and print the rest to stderr: the error and what to do, one per line.
die() {
	code=$1
	shift
	printf '%s\n' "$@" >&2
	exit "$code"
}

# Under sudo in another user's checkout, give root's new files to that user.
# -h: never follow a link such as .venv/bin/python out of the checkout.
give_back() {
	[ "$(id -u)" -eq 0 ] && [ -n "${SUDO_UID-}" ] || return 0
	[ "$(stat -c %u .)" = "$SUDO_UID" ] || return 0
	find . -xdev -path ./.git -prune -o -user 0 -exec chown -h --reference=. {} +
}

# Give the files back at any exit. The shell lets the running command finish its own
# interrupt handling before it executes the trap.
give_back_at_exit() {
	trap give_back EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}
