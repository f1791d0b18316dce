# SPDX-License-Identifier: Apache-2.0
"""Every output format of every command; formats.py is the registry."""
