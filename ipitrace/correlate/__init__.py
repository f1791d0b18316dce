# SPDX-License-Identifier: Apache-2.0
"""Assigns host events to IPIs: pure functions on arrays, no loop over events."""
