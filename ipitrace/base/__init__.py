# SPDX-License-Identifier: Apache-2.0
"""What every room uses and what knows nothing of IPIs: errors, units, files, terminal, signals."""
