#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the host does: start the guest, put ipistorm into it, measure.
# Arguments: those of `ipitrace run`.
set -eu
# shellcheck source=lab/guest/start_guest.sh
. /job/start_guest.sh
export TMPDIR=/tmp

start_guest
python3 -m ipitrace guest install --vm guest1 --module /job/ipistorm.ko >/job/result/install.txt
say "ipistorm is in"
python3 -m ipitrace run --vm guest1 -o /job/result/recording "$@"
say "measured"
