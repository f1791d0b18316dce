# SPDX-License-Identifier: Apache-2.0
"""IPI storms in a guest: transports, and one driver for each kind of guest."""
