# SPDX-License-Identifier: Apache-2.0
"""The built-in micro-guest: a bare-metal payload and a VMM in Python."""
