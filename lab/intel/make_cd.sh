#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Make a CD from which GRUB boots a kernel.
# Usage, inside the tools' root: make_cd.sh KERNEL INITRAMFS COMMAND_LINE CD
set -eu
export SOURCE_DATE_EPOCH=1735689600 # the same CD each time
tree=$(mktemp -d)
mkdir -p "$tree/boot/grub"
cp "$1" "$tree/boot/vmlinuz"
cp "$2" "$tree/boot/initramfs"
cat >"$tree/boot/grub/grub.cfg" <<END
set timeout=0
linux /boot/vmlinuz $3
initrd /boot/initramfs
boot
END
grub-mkrescue --directory=/usr/lib/grub/i386-pc --compress=no --locales= --fonts= --themes= \
	--output="$4" "$tree"
rm -r "$tree"
