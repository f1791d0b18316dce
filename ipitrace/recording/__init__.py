# SPDX-License-Identifier: Apache-2.0
"""A run as plain data, as run.json and as Parquet tables: written, read and checked."""
