# SPDX-License-Identifier: Apache-2.0
"""A run as plain data, and as run.json and Parquet tables: written, read and checked."""
