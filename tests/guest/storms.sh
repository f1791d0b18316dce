#!/bin/sh
# shellcheck shell=dash disable=SC2009 # this busybox has no pgrep
# SPDX-License-Identifier: Apache-2.0
# What the Linux guest does (busybox' sh): load the module, run every scenario, provoke every
# error, unload. Each `try NAME COMMAND` leaves NAME.out, NAME.err and NAME.status in
# /job/result; test_ipitrace_storm.py judges them.
cd /job || exit 1
r=/job/result
cpu1=/sys/devices/system/cpu/cpu1/online
tracing=/sys/kernel/tracing

try() {
	name=$1
	shift
	timeout 120 "$@" >"$r/$name.out" 2>"$r/$name.err"
	echo $? >"$r/$name.status"
}

# A short storm; options given again override these.
storm() {
	name=$1
	shift
	try "$name" ./ipitrace-storm run --pattern unicast --state running-kernel --method "$apic" \
		--sender 0 --target 1 --warmup 5 --count 60 --pace-cycles "$pace" \
		--timeout-cycles "$timeout" "$@"
}

# Start a storm that lasts half a minute; its process is $long.
start_long() {
	name=$1
	shift
	(storm "$name" --count 10000 --pace-cycles $((khz * 3)) "$@") &
	long=$!
	tries=0
	until ps | grep -q '[[]ipitrace/0[]]'; do
		tries=$((tries + 1))
		[ $tries -lt 300 ] || break
		sleep 0.1
	done
	sleep 1
	ps | grep '[[]ipitrace/' >"$r/$name.workers"
}

# The first started, not its children.
helper() { ps | sed -n 's/^ *\([0-9]*\) root *\.\/ipitrace-storm run.*/\1/p' | head -n 1; }

try insmod insmod ./ipitrace_storm.ko
try mode stat -c %a /dev/ipitrace_storm
try status ./ipitrace-storm status
khz=$(sed 's/.*"tsc_khz": \([0-9]*\).*/\1/' $r/status.out)
apic=$(sed 's/.*"apic_mode": "\([a-z0-9]*\)".*/\1/' $r/status.out)
pace=$((khz / 10))
timeout=$((khz * 9000))

for pattern in unicast self broadcast ring; do
	for state in running running-kernel halted; do
		for method in x2apic xapic smp-call pv-hypercall passthrough; do
			storm "run-$pattern-$state-$method" --pattern $pattern --state $state \
				--method $method
		done
	done
done
storm blocked --state blocked --pace-cycles $((khz * 10)) --count 20
storm from-1 --sender 1 --target 0
storm burnt --burn-cycles 1000000
storm lost --lose-one --timeout-cycles $((khz * 3000))
storm gave-up --lose-one --max-incomplete 0 --timeout-cycles $((khz * 1000))

# The kernel's own evidence that these were interrupts, and on which vector and CPU.
grep CAL: /proc/interrupts >"$r/cal-before"
storm called --method smp-call
grep CAL: /proc/interrupts >"$r/cal-after"
# The same by the kernel's tracepoints; a kernel without them ends this at once.
try senders sh -c "$(cat launch)" sh "$(cat launch)" "$(cat count)" 20 120 &
counting=$!
tries=0
until grep -q '\[active\]' $tracing/instances/*/events/csd/csd_queue_cpu/hist 2>/dev/null; do
	tries=$((tries + 1))
	[ $tries -lt 50 ] || break
	sleep 0.1
done
storm counted --method smp-call
wait $counting
ls $tracing/instances >"$r/senders.left"

for side in entry exit; do echo 1 >$tracing/events/irq_vectors/x86_platform_ipi_$side/enable; done
storm traced
cat $tracing/trace >"$r/trace"
for side in entry exit; do echo 0 >$tracing/events/irq_vectors/x86_platform_ipi_$side/enable; done

storm bad-count --count 0
storm bad-many --count 10000001
storm bad-overflow --count 10000000 --warmup 18446744073709551615
storm bad-pace --pace-cycles 18446744073709551615
storm bad-timeout --timeout-cycles 0
storm bad-long-timeout --timeout-cycles $((khz * 11000))
storm bad-burn --burn-cycles 1000001
storm bad-incomplete --max-incomplete 1001
storm bad-self --target 0
storm bad-cpu --target 4000
storm bad-sender --sender 4000
storm bad-number --count 1x
storm bad-option --state asleep
storm no-memory --count 10000000 --warmup 0 --pace-cycles 0 --pattern ring
storm check --check
chmod 666 /dev/ipitrace_storm # its mode is not all that guards it
try user su nobody -c "/job/ipitrace-storm run --pattern self --state running --method $apic --count 1 --timeout-cycles 1000000"
chmod 600 /dev/ipitrace_storm
try user-mode su nobody -c "/job/ipitrace-storm run --pattern self --state running --method $apic --count 1 --timeout-cycles 1000000"

start_long killed
try rmmod-running rmmod ipitrace_storm
storm second
kill -9 "$(helper)"
wait $long
storm after-kill
start_long terminated --state running
kill "$(helper)"
wait $long
sleep 1
ps | grep '[r]oot *\./ipitrace-storm run' >"$r/left-over"

for state in running running-kernel halted; do
	start_long "offline-$state" --state $state
	echo 0 >$cpu1
	cat $cpu1 >"$r/offline-$state.cpu1"
	wait $long
	[ $state != halted ] || break
	echo 1 >$cpu1
done
storm offline-target
storm offline-sender --sender 1 --target 0
storm offline-broadcast --pattern broadcast
echo 1 >$cpu1
start_long offline-ring --pattern ring
echo 0 >$cpu1
wait $long
echo 1 >$cpu1
storm after-offline

try rmmod rmmod ipitrace_storm
ls /dev/ipitrace_storm /sys/module/ipitrace_storm >"$r/unloaded" 2>/dev/null
grep ipitrace_storm /proc/kallsyms /sys/devices/system/cpu/hotplug/states /proc/misc >>"$r/unloaded"
ps | grep '[[]ipitrace' >>"$r/unloaded"
try no-module ./ipitrace-storm run --pattern self --state running --method "$apic" --count 1 \
	--timeout-cycles 1000000
try status-unloaded ./ipitrace-storm status
try insmod-again insmod ./ipitrace_storm.ko
storm again
try rmmod-again rmmod ipitrace_storm
