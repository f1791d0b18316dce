# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Sourced by scripts that take packages of one suite, whatever their root file system has.
# What apt needs for it lies in the folder `apt` of where they run.

# A mirror may be a snapshot of some day: signatures count, the date of expiry does not.
own_lists() {
	"$@" -o Dir::Etc::SourceList="$PWD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$PWD/apt/lists" -o APT::Sandbox::User=root \
		-o Acquire::Check-Valid-Until=false
}

# Usage: use_suite MIRROR SUITE deb|deb-src
use_suite() {
	mkdir -p apt/lists/partial
	echo "$3 $1 $2 main" >apt/sources.list
	own_lists apt-get -qq update
}
