# SPDX-License-Identifier: Apache-2.0
"""Traces a VM's vCPU threads with BPF and returns host events as NumPy arrays."""

from ipitrace.tracer.session import TraceLosses, Tracer

__all__ = ["TraceLosses", "Tracer"]
