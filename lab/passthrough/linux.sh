#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: start the guest, put ipitrace_storm in, measure; take a CPU away and bring
# it back, measure again.
# Arguments: those of `ipitrace run`.
set -eu
# shellcheck source=lab/guest/start_guest.sh
. /job/start_guest.sh
export TMPDIR=/tmp

start_guest
python3 -m ipitrace guest install --vm guest1 --module /job/ipitrace_storm.ko >/job/result/install.txt
say "ipitrace_storm is in"
no_limits="--max-rate unlimited --max-time unlimited" # the machines are emulated, and ours
# shellcheck disable=SC2086 # words
python3 -m ipitrace run --vm guest1 $no_limits -o /job/result/recording "$@"
say "measured"
python3 - >/job/result/hotplug.txt <<'END'
from ipitrace.storm.transport.registry import open_shell

CYCLES = """
cd /sys/devices/system/cpu/cpu1
for cycle in 1 2 3; do
	for online in 0 1; do echo $online >online; cat ../online; done
done
dmesg
"""
with open_shell("qga:///tmp/agent") as guest:
    print(guest.run(["sh", "-ec", CYCLES]).stdout.decode())
END
# shellcheck disable=SC2086 # words
python3 -m ipitrace run --vm guest1 $no_limits --scenario unicast-running-smp-call --count 60 --repeat 1 \
	-o /job/result/after-hotplug >/job/result/after-hotplug.txt
say "measured again"
