#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Measure two configurations of this host in turn (A B B A ...), compare them, and keep the
# recordings and the reports. The exit code is that of 'ipitrace compare'. Any CI can run it, as
# root, on bare metal.
#
# Usage: ipitrace-gate.sh [--self-test]
#
#   IPITRACE    the program, with its options        (ipitrace, else this checkout's .venv/bin/ipitrace)
#   OUT         directory of recordings and reports  (ipitrace-gate)
#   SET_UP_A    shell command that sets up the base  (true)
#   SET_UP_B    the same for the other side          (true)
#   RUN         options of 'ipitrace run'            (--scenario unicast-running)
#   COMPARE     options of 'ipitrace compare'        (--strict)
#   ROUNDS      how often each is measured           (10)
#
# RUN comes after --repeat 1 --count 1000, which 'ipitrace ab' gives each measurement: one fresh
# guest, one value, in seconds. More ROUNDS give more information than a larger --count
# (docs/statistics.md). COMPARE may contain gates. Worse by 5 % at most: --fail-on deliver.p50:+5%.
# Better by 30 % at least: --require deliver.p50:-30%. Both from a file: --gates FILE. With
# --strict, an undecided result also fails.
#
# Each round, the time left, and the place of the results are printed on standard error.
#
# --self-test measures two known cases instead of SET_UP_A and SET_UP_B: identical configurations
# must be the same, and handlers that waste BURN cycles (200000) must be worse in the round trip
# by as many cycles, and only in the round trip. The move is given by the intervals of both medians:
# these must allow BURN within 5 %, and nothing below 80 % or above 120 % of it.
set -euf # a * in RUN or COMPARE is not expanded to file names

: "${OUT:=ipitrace-gate}" "${ROUNDS:=10}" "${BURN:=200000}"
: "${SET_UP_A:=true}" "${SET_UP_B:=true}"
: "${RUN=--scenario unicast-running}" "${COMPARE=--strict}"

# Without ipitrace nothing can be measured: exit code 3, as ipitrace uses it.
find_ipitrace() {
	program=
	if [ -n "${IPITRACE-}" ]; then
		command -v "${IPITRACE%% *}" >/dev/null && return
	else
		program=$(command -v ipitrace) || program=
		# A relative entry of PATH may lead to a program of any user.
		case $program in /*) return ;; esac
		program=$(dirname "$(readlink -f "$0")")/../../.venv/bin/ipitrace
		[ ! -x "$program" ] || return 0
	fi
	program=${IPITRACE-ipitrace}
	echo "$0: There is no program ${program%% *}." >&2
	echo "Install it in a checkout of ipitrace (sudo make install), or name it in IPITRACE." >&2
	exit 3
}

# shellcheck disable=SC2086 # IPITRACE is a list of words
call_ipitrace() { if [ -n "$program" ]; then "$program" "$@"; else $IPITRACE "$@"; fi; }

# shellcheck disable=SC2086 # RUN and COMPARE are lists of words
ab() {
	where=$1 set_up_b=$2
	shift 2
	echo "$0: the report goes to $OUT/$where.json" >&2
	call_ipitrace ab --a "$SET_UP_A" --b "$set_up_b" --rounds "$ROUNDS" -o "$OUT/$where" \
		--format json --output "$OUT/$where.json" $COMPARE "$@" -- $RUN
}

judge() {
	if [ -n "${GITHUB_STEP_SUMMARY-}" ]; then set -- --github-summary; else set --; fi
	ab judged "$SET_UP_B" "$@"
}

fail() {
	echo "$0: $*" >&2
	exit 1
}

# verdict FILE METRIC: its verdict in the report
verdict() {
	python3 -I - "$1" "$2" <<'EOF'
import json, sys
(found,) = json.load(open(sys.argv[1]))["comparisons"]
print(*[row["verdict"] for row in found["rows"] if row["metric"] == sys.argv[2]])
EOF
}

# moved_by FILE METRIC: how far its median moved, in its unit, and the least and the most that the
# 95 % intervals of both medians allow
moved_by() {
	python3 -I - "$1" "$2" <<'EOF'
import json, sys
(found,) = json.load(open(sys.argv[1]))["comparisons"]
(row,) = [row for row in found["rows"] if row["metric"] == sys.argv[2]]
a, b = row["base"], row["patched"]
print(*map(round, (b["median"] - a["median"], b["low"] - a["high"], b["high"] - a["low"])))
EOF
}

# measured WHERE STATUS [WORD ...]: run 'ab', which must end with this exit code
measured() {
	where=$1 wanted=$2 status=0
	shift 2
	ab "$where" true "$@" || status=$?
	[ "$status" -eq "$wanted" ] || fail "$where: exit code $status, not $wanted"
}

self_test() {
	[ "$ROUNDS" -ge 6 ] || fail '--self-test needs 6 ROUNDS: fewer values have no interval'
	SET_UP_A=true
	# A busy machine is noisy: the minimum effect is large, and the known change is much larger.
	# It disturbs single storms: the value of a measurement is the median of five. Sometimes a
	# guest gets no CPU, and the run is not trustworthy: that measurement is repeated.
	COMPARE='--min-effect 40% --min-effect exits:0.5 --allow other_vms --retries 3'
	RUN="$RUN --repeat 5 --count 2000"

	measured nothing 0
	for metric in send.p50 deliver.p50 round_trip.p50; do
		said=$(verdict "$OUT/nothing.json" $metric)
		[ "$said" = same ] || fail "nothing against nothing: $metric is $said"
	done

	measured burnt 1 --b-run "--burn-cycles $BURN"
	[ "$(verdict "$OUT/burnt.json" round_trip.p50)" = worse ] || fail 'R is not worse'
	for metric in send.p50 deliver.p50; do
		said=$(verdict "$OUT/burnt.json" $metric)
		[ "$said" = same ] || fail "burnt handlers: $metric is $said"
	done
	moved=$(moved_by "$OUT/burnt.json" round_trip.p50)
	# shellcheck disable=SC2086 # three numbers
	set -- $moved
	echo "R moved by $1 cycles (95 % intervals: $2 to $3), $BURN were burnt"
	if [ "$3" -lt $((BURN * 95 / 100)) ] || [ "$2" -gt $((BURN * 105 / 100)) ]; then
		fail 'that is not what was burnt'
	fi
	if [ "$2" -lt $((BURN * 80 / 100)) ] || [ "$3" -gt $((BURN * 120 / 100)) ]; then
		fail 'this machine is too noisy to show it: increase ROUNDS'
	fi
}

find_ipitrace
mkdir -p -- "$OUT"
case ${1-} in
--self-test) self_test ;;
'') judge ;;
*) echo "usage: $0 [--self-test]" >&2 && exit 2 ;;
esac
