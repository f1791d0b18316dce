# SPDX-License-Identifier: Apache-2.0
"""A run, and one IPI of it, for people."""
