#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: start `ipitrace run`, take CPU 1, which a vCPU is pinned to, offline in the
# middle of a storm, see how the run ends, and bring the CPU back.
set -eu
result=/job/result
online=/sys/devices/system/cpu/cpu1/online
limit_s=600

ticks() { cut -d' ' -f1 /proc/uptime; }
say() { echo "hotplug: $(ticks) $*" >/dev/console; }

cd /tmp
python3 -m ipitrace run --scenario unicast-running --count 6000 --repeat 3 \
	-o $result/recording >$result/run.txt 2>$result/run.err &
run=$!
(
	sleep $limit_s
	kill -KILL $run
) >/dev/null 2>&1 & # its sleep outlives it, and must hold no file of /job
watchdog=$!

# Its first thread, and two vCPUs'. A storm has them for some seconds here.
until [ "$(find /proc/$run/task -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)" -ge 3 ] &&
	grep -ql '^Cpus_allowed_list:	1$' /proc/$run/task/*/status 2>/dev/null; do
	kill -0 $run
	sleep 0.1
done
say "a vCPU is pinned to CPU 1"
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
