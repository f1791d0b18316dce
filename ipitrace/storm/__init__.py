# SPDX-License-Identifier: Apache-2.0
"""What makes a guest fire IPIs: the scenario table and one driver for each kind of guest."""
