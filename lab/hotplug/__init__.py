# SPDX-License-Identifier: Apache-2.0
"""An emulated AMD host that loses a CPU while ipitrace measures."""
