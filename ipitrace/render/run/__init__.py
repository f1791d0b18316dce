# SPDX-License-Identifier: Apache-2.0
"""A run in each output format, and one IPI of it as text."""
