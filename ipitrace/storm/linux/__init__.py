# SPDX-License-Identifier: Apache-2.0
"""Storms in a Linux guest: the driver, its guest-side program, and how that is installed."""
