# SPDX-License-Identifier: Apache-2.0
"""The host we measure on: what it is, what else runs on it, what it lets us do."""
