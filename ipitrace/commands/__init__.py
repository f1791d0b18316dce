# SPDX-License-Identifier: Apache-2.0
"""One module for each command, and the code that commands share."""
