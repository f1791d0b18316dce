# SPDX-License-Identifier: Apache-2.0
"""Modules that every package uses and that know nothing of IPIs: errors, units, files, signals."""
