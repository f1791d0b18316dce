# SPDX-License-Identifier: Apache-2.0
"""Counts what running VMs do, on the host, without their cooperation."""

from ipitrace.watch.model import Interval, VmInterval
from ipitrace.watch.watcher import Watcher

__all__ = ["Interval", "VmInterval", "Watcher"]
