# SPDX-License-Identifier: Apache-2.0
"""A run: request, plan, repetitions, result, and how far the result can be trusted."""
