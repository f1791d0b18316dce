# SPDX-License-Identifier: Apache-2.0
"""How ipitrace reaches a guest (`--via`): one module for each scheme, and their registry."""
