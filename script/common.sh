# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# What the scripts beside it share; source it from the top of the checkout.

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

# Stop: exit code, then what is wrong and what to do about it, a line each.
die() {
	code=$1
	shift
	printf '%s\n' "$@" >&2
	exit "$code"
}

# Under sudo in somebody's own checkout, what root made there becomes theirs.
# -h: never follow a link such as .venv/bin/python out of the checkout.
give_back() {
	[ "$(id -u)" -eq 0 ] && [ -n "${SUDO_UID-}" ] || return 0
	[ "$(stat -c %u .)" = "$SUDO_UID" ] || return 0
	find . -xdev -path ./.git -prune -o -user 0 -exec chown -h --reference=. {} +
}

# However the script ends. The shell lets the running command finish its own
# interrupt handling before it acts on the trap.
give_back_at_exit() {
	trap give_back EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}
