#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build ipitrace_storm against a suite's kernel headers, with the kernel's own extra checks.
# Usage, inside the builder's root: build_module.sh HEADERS SOURCES DIRECTORY CC SPARSE DKMS
# SPARSE is the program; DKMS is 0 or 1: whether to build by it first. Leaves
# DIRECTORY/ipitrace_storm.ko, DIRECTORY/ipitrace-storm (the helper) and DIRECTORY/warnings, what
# compiler and sparse had to say.
set -eu
headers=$1 sources=$2 directory=$3 compiler=$4 sparse=$5 dkms=$6

# The headers name each other by these paths.
mount -t tmpfs src /usr/src
ln -s "$headers"/usr/src/* /usr/src/
build=$(dirname /usr/src/linux-headers-*/.config)
release=${build#/usr/src/linux-headers-}

mkdir /tmp/installed
make -s -C "$sources/ipitrace_storm" DESTDIR=/tmp/installed install-source
cd /tmp/installed/usr/src/ipitrace_storm-*
version=${PWD##*-}
make -s ipitrace-storm
cp ipitrace-storm "$directory/"

if [ "$dkms" = 1 ]; then # it must find everything in what install-source leaves
	mkdir /tmp/dkms
	dkms build -m ipitrace_storm -v "$version" -k "$release/x86_64" --kernelsourcedir "$build" \
		--dkmstree /tmp/dkms --sourcetree /tmp/installed/usr/src >dkms.log 2>&1 || {
		cat dkms.log /tmp/dkms/ipitrace_storm/"$version"/build/make.log >&2
		exit 1
	}
fi

# A file with a mistake for each of them proves that both look. KBUILD_CHECKSRC, since 7.x
# switches C=1 off without a script that Debian's headers lack.
cat >canary.c <<-'END'
	#include <linux/module.h>
	#include <linux/types.h>
	int canary(const int __user *there)
	{
		return *there;
	}
	MODULE_DESCRIPTION("canary");
	MODULE_LICENSE("GPL");
END
echo 'obj-m += canary.o' >>Kbuild
make -s -C "$build" CC="$compiler" HOSTCC="$compiler" M="$PWD" W=1 C=1 KBUILD_CHECKSRC=1 \
	CHECK="$sparse" modules >messages 2>&1 || { cat messages >&2 && exit 1; }
for known in 'missing-prototypes' 'dereference of noderef expression'; do
	grep -q "canary.c:.*$known" messages || {
		cat messages >&2
		echo "the checks do not find a known mistake: $known" >&2
		exit 1
	}
done
# Ours alone; "Skipping BTF", other compilers and the like are no matter of the sources'.
for file in *.[ch]; do
	[ "$file" = canary.c ] || grep -E "(^|/)$file:[0-9]+" messages || :
done >"$directory/warnings"
strip --strip-debug ipitrace_storm.ko
cp ipitrace_storm.ko "$directory/"
echo "$release" >"$directory/release"
