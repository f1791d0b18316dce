#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack the kernel that a suite's linux-image-amd64 stands for.
# Usage, inside the tools' root: fetch_kernel.sh DIRECTORY MIRROR SUITE
# Leaves DIRECTORY/vmlinuz, DIRECTORY/lib/modules/RELEASE and, in DIRECTORY/packages,
# the names of the packages.
set -eu
cd "$1"
# shellcheck source=lab/common/apt.sh
. ./apt.sh
use_suite "$2" "$3" deb
# Newer packagings split the image into several packages.
own_lists apt-cache depends --recurse --important linux-image-amd64 |
	sed -n 's/^\(linux-\(base\|image\|modules\|binary\)-[0-9].*\)/\1/p' | sort -u >packages
[ -s packages ] || {
	echo "the suite $3 has no linux-image-amd64" >&2
	exit 1
}
# shellcheck disable=SC2046 # a package a line
own_lists apt-get -qq download $(cat packages)
for package in *.deb; do
	dpkg-deb --extract "$package" unpacked
done

# Either beside its modules or in /boot, by the age of the packaging; /lib likewise.
modules=$(dirname "$(find unpacked -path '*/lib/modules/*' -name kernel -prune)")
release=$(basename "$modules")
mkdir -p lib/modules
if [ -e "$modules/vmlinuz" ]; then
	mv "$modules/vmlinuz" .
else
	mv "unpacked/boot/vmlinuz-$release" vmlinuz
fi
mv "$modules" lib/modules/
depmod --basedir "$PWD" "$release"
rm -r apt unpacked ./*.deb
