#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compare two configurations of this host in turn (A B B A ...), keep the recordings and the
# reports, and exit as 'ipitrace compare' does. Any CI can run it, as root, on bare metal.
#
# Usage: ipitrace-gate.sh [--self-test]
#
#   IPITRACE    how to call it                       (ipitrace, else this checkout's .venv/bin/ipitrace)
#   OUT         where recordings and reports go      (ipitrace-gate)
#   SET_UP_A    shell command that sets up the base  (true)
#   SET_UP_B    and the one to be judged             (true)
#   RUN         options of 'ipitrace run'            (--scenario unicast-running)
#   COMPARE     options of 'ipitrace compare'        (--strict)
#   ROUNDS      how often each is measured           (10)
#
# RUN comes after --repeat 1 --count 1000, which 'ipitrace ab' gives each measurement: one fresh
# guest, one value, in seconds. More ROUNDS tell more than a larger --count (docs/statistics.md).
# COMPARE may hold gates. Worse by 5 % at most: --fail-on deliver.p50:+5%. Better by 30 % at
# least: --require deliver.p50:-30%. Both from a file: --gates FILE. With --strict what could not
# be decided fails, too.
#
# Each round, the time left, and where everything goes are told on standard error.
#
# --self-test measures a known truth instead of SET_UP_A and SET_UP_B: nothing against nothing
# must be the same, and handlers that burn BURN cycles (200000) must be worse in the round
# trip by about as much, and in the round trip alone.
set -euf # no * of RUN or COMPARE is taken for a file's name

: "${OUT:=ipitrace-gate}" "${ROUNDS:=10}" "${BURN:=200000}"
: "${SET_UP_A:=true}" "${SET_UP_B:=true}"
: "${RUN=--scenario unicast-running}" "${COMPARE=--strict}"

# Without ipitrace nothing is measured: no verdict, and exit code 3 as ipitrace has it.
find_ipitrace() {
	program=
	if [ -n "${IPITRACE-}" ]; then
		command -v "${IPITRACE%% *}" >/dev/null && return
	else
		program=$(command -v ipitrace) || program=
		# What a relative entry of PATH leads to is anybody's.
		case $program in /*) return ;; esac
		program=$(dirname "$(readlink -f "$0")")/../../.venv/bin/ipitrace
		[ ! -x "$program" ] || return 0
	fi
	program=${IPITRACE-ipitrace}
	echo "$0: There is no program ${program%% *}." >&2
	echo "Install it in a checkout of ipitrace (sudo make install), or say in IPITRACE how to call it." >&2
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

# verdict FILE METRIC: what the report says of it
verdict() {
	python3 -I - "$1" "$2" <<'EOF'
import json, sys
(found,) = json.load(open(sys.argv[1]))["comparisons"]
print(*[row["verdict"] for row in found["rows"] if row["metric"] == sys.argv[2]])
EOF
}

# moved_by FILE METRIC: how far its median moved, in its unit
moved_by() {
	python3 -I - "$1" "$2" <<'EOF'
import json, sys
(found,) = json.load(open(sys.argv[1]))["comparisons"]
(row,) = [row for row in found["rows"] if row["metric"] == sys.argv[2]]
print(round(row["patched"]["median"] - row["base"]["median"]))
EOF
}

# measured WHERE STATUS [WORD ...]: an 'ab' that ends with this exit code
measured() {
	where=$1 wanted=$2 status=0
	shift 2
	ab "$where" true "$@" || status=$?
	[ "$status" -eq "$wanted" ] || fail "$where: exit code $status, not $wanted"
}

self_test() {
	SET_UP_A=true
	# A busy machine is noisy: what is proved here is much larger than this. It disturbs one
	# storm or the other: a visit counts by the median of five. It starves a guest now and
	# then, so that the run says that it is not to be trusted: that visit is made again.
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
	echo "R moved by $moved cycles, $BURN were burnt"
	if [ "$moved" -lt $((BURN * 8 / 10)) ] || [ "$moved" -gt $((BURN * 16 / 10)) ]; then
		fail 'that is not what was burnt'
	fi
}

find_ipitrace
mkdir -p -- "$OUT"
case ${1-} in
--self-test) self_test ;;
'') judge ;;
*) echo "usage: $0 [--self-test]" >&2 && exit 2 ;;
esac
