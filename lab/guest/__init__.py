# SPDX-License-Identifier: Apache-2.0
"""A Linux guest for ipitrace_storm: its module built for Debian's kernels, booted in QEMU's TCG."""
