# SPDX-License-Identifier: Apache-2.0
"""The run: requests, turns, repetitions, and whether the result can be trusted."""
