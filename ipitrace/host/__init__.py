# SPDX-License-Identifier: Apache-2.0
"""The measured host: its properties, other programs on it, and this process's privileges."""
