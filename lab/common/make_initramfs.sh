#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Pack the initramfs: busybox, modules with what they depend on, and `init`.
# Usage, inside the tools' root: make_initramfs.sh KERNEL RELEASE DIRECTORY SET=MODULE,... ...
# Needs DIRECTORY/init; leaves DIRECTORY/initramfs. Each SET becomes modules/SET.order,
# the modules to insert one after the other, named as the kernel names them.
set -eu
kernel=$1 release=$2
cd "$3"
shift 3

mkdir -p tree/bin tree/modules
cp /usr/bin/busybox tree/bin/
mv init tree/init
chmod 755 tree/init

for set; do
	order=tree/modules/${set%%=*}.order
	for module in $(echo "${set#*=}" | tr , ' '); do
		modprobe --dirname "$kernel" --set-version "$release" --show-depends "$module"
	done >depends # a file, not a pipe: a missing module must end this script
	sed -n 's/^insmod \([^ ]*\).*/\1/p' depends | while read -r file; do
		name=$(basename "${file%%.ko*}" | tr - _)
		case $file in
		*.xz) xz -dc "$file" ;;
		*.zst) zstd -qdc "$file" ;;
		*) cat "$file" ;;
		esac >"tree/modules/$name.ko"
		grep -qsx "$name" "$order" || echo "$name" >>"$order"
	done
done
(cd tree && find . | cpio --quiet -o -H newc) | gzip -1 >initramfs
rm -r tree depends
