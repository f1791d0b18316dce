#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack what modules for a suite's kernel are built against: linux-headers-amd64.
# Usage, inside the tools' root: fetch_headers.sh DIRECTORY MIRROR SUITE
# Leaves DIRECTORY/usr/src and, in DIRECTORY/packages, the names of the packages.
set -eu
cd "$1"
# shellcheck source=lab/common/apt.sh
. ./apt.sh
use_suite "$2" "$3" deb
own_lists apt-cache depends --recurse --important linux-headers-amd64 |
	sed -n 's/^\(linux-\(headers\|kbuild\)-[0-9].*\)/\1/p' | sort -u >packages
[ -s packages ] || {
	echo "the suite $3 has no linux-headers-amd64" >&2
	exit 1
}
# shellcheck disable=SC2046 # a package a line
own_lists apt-get -qq download $(cat packages)
for package in *.deb; do
	dpkg-deb --extract "$package" .
done
rm -r apt ./*.deb
