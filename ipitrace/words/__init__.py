# SPDX-License-Identifier: Apache-2.0
"""What the project talks about: one table a word, with name, meaning and how it is printed."""
