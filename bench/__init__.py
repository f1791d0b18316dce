# SPDX-License-Identifier: Apache-2.0
"""The cost of ipitrace itself, compared with other tools: `make bench`."""
