#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: measure itself (--vm local); start the guest under KVM, put ipistorm into
# it, measure, take it out.
# /job/qemu has QEMU's command line, a word a line; /job/arguments those of `ipitrace run`.
set -eu
export PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
export PYTHONPATH=/job/site PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 TMPDIR=/tmp
cd /tmp
exec >/job/result/stdout.txt 2>/job/result/stderr.txt

say() { echo "lab-nested: $(cut -d' ' -f1 /proc/uptime) $*" | tee /dev/console >&2; }
ipitrace() { python3 -m ipitrace "$@"; }

ip link set lo up
mount -t tmpfs var-tmp /var/tmp # where QEMU keeps what the guest writes
mount -t tmpfs var-lib /var/lib # where --vm local puts ipistorm
ln -s "$(findfs LABEL=guest1)" /tmp/disk # disks are found in any order
cp /job/key /tmp/key
chmod 600 /tmp/key

ipitrace guest install --vm local --module /job/ipistorm.ko >/job/result/local-install.txt
ipitrace run --vm local --count 100 --repeat 2 -o /job/result/local \
	--scenario unicast-running-xapic --scenario broadcast-xapic >/job/result/local.txt
ipitrace guest remove --vm local >/job/result/local-remove.txt
say "measured itself"

xargs -d '\n' env </job/qemu &
qemu=$!
at_end() {
	cp /tmp/console /job/result/guest-console.txt
	kill $qemu 2>/dev/null || {
		# 0: the guest reset itself, which -no-reboot makes an end; a triple fault, say
		wait $qemu && status=0 || status=$?
		say "QEMU had ended before: status $status"
	}
}
trap at_end EXIT
until grep -q 'lab-guest: ready' /tmp/console 2>/dev/null; do
	kill -0 $qemu
	sleep 1
done
say "the guest is up"
via=ssh://guest1
ipitrace list >/job/result/list.txt
ipitrace guest install --vm guest1 --via $via --module /job/ipistorm.ko >/job/result/install.txt
say "ipistorm is in"
xargs -d '\n' python3 -m ipitrace run --vm guest1 --via $via -o /job/result/recording </job/arguments
say "measured"
# By the way in that nobody names: the agent's channel on QEMU's command line.
ipitrace run --vm guest1 --scenario unicast-running --count 40 --repeat 2 -o /job/result/by-agent \
	>/job/result/by-agent.txt
say "measured by the agent"
ipitrace guest remove --vm guest1 --via $via >/job/result/remove.txt
