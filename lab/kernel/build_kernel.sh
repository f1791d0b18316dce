#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the lab's kernel from a source package that the tools' root has.
# Usage, inside the tools' root: build_kernel.sh DIRECTORY PACKAGE CONFIG...
# DIRECTORY has the configurations and patches; leaves vmlinuz, config, lib/modules/RELEASE
# and usr/src/linux-headers-RELEASE.
set -eu
cd "$1"
package=$2
shift 2
cat "$@" >wanted
mkdir source build
tar --extract --file "/usr/src/$package.tar.xz" --strip-components=1 --directory source
for patch in patches/*.patch; do
	echo "$patch"
	patch --directory source --strip=1 --fuzz=0 --quiet <"$patch"
done

build() {
	make -s -C source O="$PWD/build" LOCALVERSION=-lab KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab \
		KBUILD_BUILD_TIMESTAMP='2025-01-01' "$@"
}

build tinyconfig
source/scripts/kconfig/merge_config.sh -m -O build build/.config wanted >merged
build olddefconfig
# What depends on something that is off disappears without a word.
grep '^CONFIG_' wanted | while read -r option; do
	grep -qxF "$option" build/.config || echo "$option"
done >missing
[ ! -s missing ] || {
	echo "the configuration lacks:" >&2
	cat missing >&2
	exit 1
}
build -j "$(nproc)" bzImage modules
build INSTALL_MOD_PATH="$PWD" INSTALL_MOD_STRIP=1 modules_install
cp build/arch/x86/boot/bzImage vmlinuz
cp build/.config config
release=$(basename lib/modules/*)
headers=usr/src/linux-headers-$release
# shellcheck disable=SC2016 # make's own srctree
build run-command \
	KBUILD_RUN_COMMAND='$$srctree/scripts/package/install-extmod-build '"$PWD/$headers"
cp build/.config "$headers"
rm -f "lib/modules/$release/build" "lib/modules/$release/source"
rm -r build source patches merged missing wanted "$@"
