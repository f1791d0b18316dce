#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: measure itself (--vm local); start the guest under KVM, put
# ipitrace_storm into it, measure, take it out. /job/arguments has the arguments of `ipitrace run`, one a line.
set -eu
# shellcheck source=lab/guest/start_guest.sh
. /job/start_guest.sh
export TMPDIR=/tmp PATH="/tmp/bin:$PATH"

ipitrace() { python3 -m ipitrace "$@"; }

ip link set lo up
mount -t tmpfs var-lib /var/lib # where --vm local puts ipitrace_storm
cp /job/key /tmp/key
chmod 600 /tmp/key
mkdir /tmp/bin
printf '#!/bin/sh\nexec /usr/bin/ssh -F /job/config "$@"\n' >/tmp/bin/ssh
chmod 755 /tmp/bin/ssh

ipitrace guest install --vm local --module /job/ipitrace_storm.ko >/job/result/local-install.txt
no_limits="--max-rate unlimited --max-time unlimited" # the machines are emulated, and ours
# shellcheck disable=SC2086 # words
ipitrace run --vm local $no_limits --count 100 --repeat 2 -o /job/result/local \
	--scenario unicast-running-xapic --scenario broadcast-xapic >/job/result/local.txt
ipitrace guest remove --vm local >/job/result/local-remove.txt
say "measured itself"

start_guest
via=ssh://guest1
ipitrace list >/job/result/list.txt
ipitrace guest install --vm guest1 --via $via --module /job/ipitrace_storm.ko >/job/result/install.txt
say "ipitrace_storm is in"
# shellcheck disable=SC2086 # words
xargs -d '\n' python3 -m ipitrace run --vm guest1 --via $via $no_limits -o /job/result/recording </job/arguments
say "measured"
# By the way in that nobody names: the agent's channel on QEMU's command line.
# shellcheck disable=SC2086 # words
ipitrace run --vm guest1 $no_limits --scenario unicast-running --count 40 --repeat 2 -o /job/result/by-agent \
	>/job/result/by-agent.txt
say "measured by the agent"
ipitrace guest remove --vm guest1 --via $via >/job/result/remove.txt
