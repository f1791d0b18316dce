#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build what QEMU is preloaded with. Usage, inside the tools' root: build_enable.sh DIRECTORY
# DIRECTORY has enable.c; leaves enable.so.
set -eu
cd "$1"
gcc -Wall -Wextra -Werror -O2 -shared -fPIC -o enable.so enable.c
