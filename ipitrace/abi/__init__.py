# SPDX-License-Identifier: Apache-2.0
"""NumPy mirrors of the C headers shared with kernel and guest."""
