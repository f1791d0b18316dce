# SPDX-License-Identifier: Apache-2.0
"""The host: its CPUs, kernel and neighbours, and what it permits."""
