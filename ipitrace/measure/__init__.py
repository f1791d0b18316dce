# SPDX-License-Identifier: Apache-2.0
"""The run itself: requests, turns, repetitions, and how far the result can be trusted."""
