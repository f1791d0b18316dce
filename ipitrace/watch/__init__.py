# SPDX-License-Identifier: Apache-2.0
"""Counts what running VMs do, on the host, without their cooperation."""

from ipitrace.watch.model import VmInterval, WatchInterval
from ipitrace.watch.watcher import Watcher

__all__ = ["VmInterval", "WatchInterval", "Watcher"]
