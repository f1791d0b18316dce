#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run Bochs until the host powers off. Usage, inside the tools' root:
#   run_bochs.sh BOCHS BOCHSRC LOG TIMEOUT [STAMPS]
# Bochs ends with status 1 whatever ended it; its log tells a power-off from a panic.
set -eu
[ $# -lt 5 ] || export BOCHS_STAMPS="$5"
status=0
timeout "$4" "$1" -q -f "$2" || status=$?
if ! grep -q 'ACPI control: soft power off' "$3"; then
	[ $status -ne 124 ] || echo "the host had not powered off after $4 s" >&2
	exit 1
fi
