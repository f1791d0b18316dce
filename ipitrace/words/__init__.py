# SPDX-License-Identifier: Apache-2.0
"""The project's terms, one table each: name, meaning, and how it is printed."""
