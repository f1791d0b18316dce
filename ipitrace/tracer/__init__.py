# SPDX-License-Identifier: Apache-2.0
"""Trace a VM's vCPU threads with BPF and return the host events as NumPy arrays."""

from ipitrace.tracer.session import TraceLosses, Tracer

__all__ = ["TraceLosses", "Tracer"]
