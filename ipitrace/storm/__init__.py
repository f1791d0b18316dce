# SPDX-License-Identifier: Apache-2.0
"""Drivers: they make a guest send IPIs and return its records."""
