# SPDX-License-Identifier: Apache-2.0
"""Which call sites of a Linux guest's kernel send its IPIs."""
