# SPDX-License-Identifier: Apache-2.0
"""The embedded micro-guest: a bare-metal payload and a VMM in pure Python."""
