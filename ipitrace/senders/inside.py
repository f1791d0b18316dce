# SPDX-License-Identifier: Apache-2.0
"""The shell scripts that count in the guest.

They use an instance of tracefs of their own: it has its own ring buffer, events and triggers, and
removing it ends all of them. The guest's global trace buffer is not touched. Tracefs that is not
mounted is mounted in a mount namespace that ends with the scripts.

LAUNCH only waits. COUNT, in a session of its own, makes and removes the instance. It also ends when
the output of a `sleep` ends that LAUNCH started: if LAUNCH is killed with its process group, as the
transport `local` does with SIGKILL, the `sleep` is, too. COUNT keeps a file of its instance open,
so that the kernel refuses everybody else to remove it (EBUSY). An instance that is not in use was
left by a COUNT that was itself killed, and is removed.
"""

from typing import Final

from ipitrace.senders.model import QUEUED, TO_MASK, TO_ONE, TRACEPOINTS

INSTANCE: Final = "ipitrace-senders-"
"""The name of the instance, before the number of its process."""

FORMAT: Final = "ipitrace-senders 1"
"""The first line of the output. The following lines begin with a word:

kernel RELEASE; missing PATH of a tracepoint; uptime SECONDS SECONDS at begin and end;
histogram EVENT LINE of a histogram; record COUNT TEXT of equal records; more COUNT of records that
are in no such line; stat LINE of per_cpu/*/stats; end, the last line.
"""

MOST_KEYS: Final = 1024
"""Call sites and callbacks that a histogram has room for; a kernel has some dozens."""

MOST_LINES: Final = 4000
"""Different records that are sent; more are only counted."""

MASKS_KB: Final = 64
"""The ring buffer for each CPU where a histogram counts: only sends to masks are recorded, and a
full buffer ends this."""

# Arguments: this script, COUNT, seconds to count, seconds after which it ends in any case.
# `mount -n` makes no /run/mount.
LAUNCH: Final = """# ipitrace guest senders
at=
while read -r _ place kind _; do
	if [ "$kind" = tracefs ] && [ -d "$place/instances" ]; then at=$place; fi
done </proc/mounts
if [ -z "$at" ]; then
	exec unshare -m sh -c \\
		'mount -n -t tracefs none /sys/kernel/tracing && exec sh -c "$1" sh "$@"' sh "$@"
fi
cd "$at" || exit
for program in awk setsid sleep; do
	command -v $program >/dev/null || { echo "there is no $program" >&2; exit 1; }
done
sh -c 'echo $$; exec sleep "$1" 2>/dev/null' sh "$4" | setsid sh -c "$2" sh "$3" &
count=$!
trap 'kill $count 2>/dev/null' HUP INT TERM
wait $count
status=$?
while kill -0 $count 2>/dev/null; do
	wait $count
	status=$?
done
exit $status
"""

# A trigger file that is opened without O_APPEND loses its triggers. Enabling a tracepoint sends
# IPIs itself: nothing is counted before all are enabled.
COUNT: Final = f"""# ipitrace guest senders: count
read -r sleeper
exec 3<&0 </dev/null
timer=
trap 'kill $sleeper $timer 2>/dev/null' HUP INT TERM
trap '' PIPE
instance={INSTANCE}$$
printf '%s\\nkernel %s\\n' '{FORMAT}' "$(uname -r)" || exit
events=""
histograms=""
records=""
for path in {" ".join(one.path for one in TRACEPOINTS)}; do
	if [ -e "events/$path" ]; then events="$events $path"; else echo "missing $path"; fi
done
if [ -z "$events" ]; then
	kill "$sleeper"
	echo end
	exit
fi
cd instances || exit
instances=$PWD
for old in {INSTANCE}*; do
	if [ -e "$old" ]; then rmdir "$old" 2>/dev/null; fi
done
remove() {{
	exec 9<&-
	rmdir "$instances/$instance"
}}
fail() {{
	remove
	kill "$sleeper" 2>/dev/null
	echo "$1" >&2
	exit 1
}}
tries=0 # another COUNT may remove it before it is open
until mkdir "$instance" && command exec 9<"$instance/trace_pipe"; do
	tries=$((tries + 1))
	if [ $tries -ge 5 ]; then fail 'an instance cannot be made'; fi
done
cd "$instance" || fail 'the instance cannot be entered'
keys() {{
	case $1 in {QUEUED.path}) callback={QUEUED.callback} ;; *) callback={TO_ONE.callback} ;; esac
	echo "hist:keys=callsite.sym,$callback.sym:size={MOST_KEYS}"
}}
each() {{ # what: of every histogram
	for path in $histograms; do echo "$(keys "$path"):$1" >>"events/$path/trigger"; done
}}
setting() {{ echo "$1" 2>/dev/null >"$2" || fail "$2 cannot be set"; }}
setting 0 tracing_on
setting 0 options/context-info
setting 0 options/overwrite
for path in $events; do
	if [ -e "events/$path/hist" ] && {{
		echo "$(keys "$path"):pause" >>"events/$path/trigger"
	}} 2>/dev/null; then
		histograms="$histograms $path"
		if [ "$path" != {TO_MASK.path} ]; then continue; fi
	else
		records="$records $path"
	fi
	setting 1 "events/$path/enable"
done
if [ -z "$records" ]; then setting {MASKS_KB} buffer_size_kb; fi
read -r begin _ </proc/uptime
setting 1 tracing_on
each cont
sleep "$1" >/dev/null 9<&- &
timer=$!
{{ cat <&3; kill $timer; }} >/dev/null 2>&1 9<&- &
early=$!
wait $timer
each pause # first: the end of tracing sends IPIs itself
setting 0 tracing_on
read -r end _ </proc/uptime
kill $early "$sleeper" 2>/dev/null
said=$(
	echo "uptime $begin $end"
	for path in $histograms; do
		sed "s|^|histogram ${{path#*/}} |" "events/$path/hist"
	done
	awk '/^[a-z_]+: / {{
			sub(/ csd=.*/, "")
			sub(/: cpu=[0-9]+/, ":")
			gsub(/\\+0x[0-9a-f]+\\/0x[0-9a-f]+/, "")
			if (!($0 in n) && lines++ >= {MOST_LINES}) more++
			else n[$0]++
		}}
		END {{
			for (line in n) print "record", n[line], line
			print "more", more + 0
		}}' trace
	sed -n 's/^dropped events: /stat &/p' per_cpu/cpu*/stats
	echo end
)
remove || exit
printf '%s\\n' "$said"
"""
