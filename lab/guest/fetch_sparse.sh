#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Take the program sparse, and nothing else, out of a suite's package of it.
# Usage, inside the tools' root: fetch_sparse.sh MIRROR SUITE DIRECTORY
# Leaves DIRECTORY/sparse.
set -eu
mirror=$1 suite=$2
cd "$3"
mkdir -p apt/lists/partial
echo "deb $mirror $suite main" >apt/sources.list

# A mirror may be a snapshot of some day: signatures count, the date of expiry does not.
own_lists() {
	"$@" -o Dir::Etc::SourceList="$PWD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$PWD/apt/lists" -o APT::Sandbox::User=root \
		-o Acquire::Check-Valid-Until=false
}

own_lists apt-get -qq update
own_lists apt-get -qq download sparse
dpkg-deb --extract sparse_*.deb unpacked
mv unpacked/usr/bin/sparse .
rm -r apt unpacked ./*.deb
