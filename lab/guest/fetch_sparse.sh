#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Take the program sparse, and nothing else, out of a suite's package of it.
# Usage, inside the tools' root: fetch_sparse.sh DIRECTORY MIRROR SUITE
# Leaves DIRECTORY/sparse.
set -eu
cd "$1"
# shellcheck source=lab/common/apt.sh
. ./apt.sh
use_suite "$2" "$3" deb
own_lists apt-get -qq download sparse
dpkg-deb --extract sparse_*.deb unpacked
mv unpacked/usr/bin/sparse .
rm -r apt unpacked ./*.deb
