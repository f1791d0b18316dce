# SPDX-License-Identifier: Apache-2.0
"""What both emulated hosts share, a module a step."""
