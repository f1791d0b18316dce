# SPDX-License-Identifier: Apache-2.0
"""What watching adds to an IPI, by ipitrace and by other tools, on the emulated Intel host."""
