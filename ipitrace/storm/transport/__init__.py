# SPDX-License-Identifier: Apache-2.0
"""The transports to a guest (`--via`): one module for each scheme, and their registry."""
