# SPDX-License-Identifier: Apache-2.0
"""One file for each command, and the parts that commands share."""
