# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Sourced by jobs of an emulated host: starts the guest whose files lab.guest.inside put into
# /job. When the job ends it is ended, and its console is kept.

say() { echo "lab-guest: $(cut -d' ' -f1 /proc/uptime) $*" | tee /dev/console >&2; }

at_end() {
	cp /tmp/console /job/result/guest-console.txt
	kill "$guest" 2>/dev/null || {
		# 0: the guest reset itself, which -no-reboot makes an end; a triple fault, say
		wait "$guest" && status=0 || status=$?
		say "QEMU had ended before: status $status"
	}
}

start_guest() {
	mount -t tmpfs var-tmp /var/tmp          # where QEMU keeps what the guest writes
	ln -s "$(findfs LABEL=guest1)" /tmp/disk # disks are found in any order
	xargs -d '\n' env </job/qemu &
	guest=$!
	trap at_end EXIT
	until grep -q 'lab-guest: ready' /tmp/console 2>/dev/null; do
		kill -0 $guest
		sleep 1
	done
	say "the guest is up"
}
