# SPDX-License-Identifier: Apache-2.0
"""One interval of `watch` in each output format."""
