# SPDX-License-Identifier: Apache-2.0
"""ipitrace: what an inter-processor interrupt costs on a real KVM host."""

__version__ = "0.1.0"
