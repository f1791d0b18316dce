#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Make a CD from which GRUB boots a kernel; the same bytes each time.
# Usage, inside the tools' root: make_cd.sh KERNEL INITRAMFS COMMAND_LINE CD
# (grub-mkrescue puts the time of day into what it makes.)
set -eu
export SOURCE_DATE_EPOCH=1735689600 # for xorriso
tree=$(mktemp -d)
cp "$1" "$tree/vmlinuz"
cp "$2" "$tree/initramfs"
cat >"$tree/grub.cfg" <<END
linux (cd)/vmlinuz $3
initrd (cd)/initramfs
boot
END
grub-mkimage --format=i386-pc-eltorito --prefix=/ --config="$tree/grub.cfg" \
	--output="$tree/grub.img" biosdisk boot iso9660 linux
touch --date="@$SOURCE_DATE_EPOCH" "$tree"/* "$tree"
xorriso -as mkisofs -quiet -b grub.img -no-emul-boot -boot-load-size 4 -boot-info-table \
	-o "$4" "$tree"
rm -r "$tree"
