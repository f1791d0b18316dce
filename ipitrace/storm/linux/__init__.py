# SPDX-License-Identifier: Apache-2.0
"""Storms in a Linux guest: the driver, its program in the guest, and the installation of both."""
