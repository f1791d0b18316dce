# SPDX-License-Identifier: Apache-2.0
"""What watch saw in one interval, in each output format."""
