# SPDX-License-Identifier: Apache-2.0
"""A comparison in each output format."""
