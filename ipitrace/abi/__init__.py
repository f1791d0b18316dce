# SPDX-License-Identifier: Apache-2.0
"""Mirrors of the C headers that kernel, guest and Python share; tests/contract compares them."""
