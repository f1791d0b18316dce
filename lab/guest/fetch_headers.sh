#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack what modules for a suite's kernel are built against: linux-headers-amd64.
# Usage, inside the tools' root: fetch_headers.sh MIRROR SUITE DIRECTORY
# Leaves DIRECTORY/usr/src and, in DIRECTORY/packages, the names of the packages.
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
own_lists apt-cache depends --recurse --important linux-headers-amd64 |
	sed -n 's/^\(linux-\(headers\|kbuild\)-[0-9].*\)/\1/p' | sort -u >packages
[ -s packages ] || {
	echo "the suite $suite has no linux-headers-amd64" >&2
	exit 1
}
# shellcheck disable=SC2046 # a package a line
own_lists apt-get -qq download $(cat packages)
for package in *.deb; do
	dpkg-deb --extract "$package" .
done
rm -r apt ./*.deb
