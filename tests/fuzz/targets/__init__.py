# SPDX-License-Identifier: Apache-2.0
"""One module a target: its fuzz(data) lets pass what the parser documents, and nothing else."""
