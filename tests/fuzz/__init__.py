# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every parser that reads what others wrote; `python -m tests.fuzz --help`."""
