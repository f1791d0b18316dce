# SPDX-License-Identifier: Apache-2.0
"""A run as data classes, run.json and Parquet tables: written, read and checked."""
