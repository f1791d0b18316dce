# SPDX-License-Identifier: Apache-2.0
"""Watches a VM's vCPU threads with BPF and hands back what the host did, as NumPy arrays."""

from ipitrace.tracer.session import TraceLosses, Tracer

__all__ = ["TraceLosses", "Tracer"]
