#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: start `ipitrace run`, take CPU 1, which a vCPU is pinned to, offline in the
# middle of the second storm, see how the run ends, and bring the CPU back.
set -eu
result=/job/result
online=/sys/devices/system/cpu/cpu1/online
limit_s=600

ticks() { cut -d' ' -f1 /proc/uptime; }
say() { echo "hotplug: $(ticks) $*" >/dev/console; }

cd /tmp
# Without a trace each storm is a whole repetition; with one it takes three.
python3 -m ipitrace run --no-trace --scenario unicast-running --count 6000 --repeat 3 \
	-o $result/recording >$result/run.txt 2>$result/run.err &
run=$!
(
	sleep $limit_s
	kill -KILL $run
) >/dev/null 2>&1 & # its sleep outlives it, and must hold no file of /job
watchdog=$!

# The thread of vCPU 1, other than $1; each storm has a new one, for some seconds here.
pinned() {
	grep -l '^Cpus_allowed_list:	1$' /proc/$run/task/*/status 2>/dev/null | grep -vxF "$1"
}
first=
for storm in first second; do
	until found=$(pinned "${first:-none}"); do
		kill -0 $run
		sleep 0.1
	done
	first=$found
	say "the $storm storm: a vCPU is pinned to CPU 1"
done
sleep 1
echo 0 >$online
say "CPU 1 is offline"
cp $online $result/online-in-mid-run
status=0
wait $run || status=$?
kill $watchdog || :
say "the run ended with $status"
echo $status >$result/run.status
echo 1 >$online
ls -A /tmp >$result/left-in-tmp
