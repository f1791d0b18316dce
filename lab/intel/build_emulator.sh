#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build Bochs from the suite's source package with the patches of this folder.
# Usage, inside the tools' root: build_emulator.sh DIRECTORY MIRROR SUITE
# DIRECTORY/patches holds the patches; leaves DIRECTORY/bochs.
set -eu
cd "$1"
# shellcheck source=lab/common/apt.sh
. ./apt.sh
use_suite "$2" "$3" deb-src
# The upstream tarball alone: Debian's changes to it are for a build we do not make.
own_lists apt-get -qq source --download-only --tar-only bochs
mkdir source build
tar --extract --file bochs_*.orig.tar.* --strip-components=1 --directory source
for patch in patches/*.patch; do
	echo "$patch"
	patch --directory source --strip=1 --fuzz=0 <"$patch"
done

# No debugger and no instrumentation: they cost more than half of the speed.
# The CPU this runs on is not looked at, so that a build serves any machine.
cd build
CFLAGS='-O3 -fomit-frame-pointer' CXXFLAGS='-O3 -fomit-frame-pointer' ../source/configure \
	--enable-smp --enable-x86-64 --enable-cpu-level=6 --enable-long-phy-address \
	--enable-vmx=2 --enable-avx --enable-evex --enable-cet --enable-uintr \
	--enable-memtype --enable-protection-keys --enable-pci --enable-all-optimizations \
	--disable-debugger --disable-x86-debugger --disable-plugins --disable-docbook \
	--with-nogui --without-x11 --without-wx --without-sdl --without-sdl2 --without-term
make -j "$(nproc)" bochs
strip -o ../bochs bochs
cd ..
rm -r apt build source patches bochs_*
