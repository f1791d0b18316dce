# SPDX-License-Identifier: Apache-2.0
"""Which host events belong to which IPI: pure functions on arrays, no loop over events."""
