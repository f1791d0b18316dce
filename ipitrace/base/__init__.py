# SPDX-License-Identifier: Apache-2.0
"""What everything uses: errors, units, files, terminal, signals. Knows nothing of IPIs."""
