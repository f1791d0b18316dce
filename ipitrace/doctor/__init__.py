# SPDX-License-Identifier: Apache-2.0
"""Checks whether this host can measure IPIs, and changes nothing."""

import contextlib

from ipitrace.doctor.kvm import check_device, check_kvm
from ipitrace.doctor.load import check_load
from ipitrace.doctor.machine import check_machine
from ipitrace.doctor.model import Check, Examination, Status
from ipitrace.doctor.tracing import check_access, check_events
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.host.kvm_features import read_kvm_features
from ipitrace.vm import discover, pick

__all__ = ["Check", "Examination", "Status", "examine"]


def examine(vm_name: str | None = None) -> Examination:
    """Check the host, and the VM with this name, in about two seconds.

    Neighbours are read before ipitrace's own programs are loaded. BPF programs are loaded and
    unloaded; none is attached.

    Raises:
        UsageError: no VM has this name, or several have it.
    """
    access = tuple(check_access())
    found = discover()
    vm = None if vm_name is None else pick(found, vm_name)
    fingerprint = read_fingerprint()
    load = tuple(check_load(found, vm, fingerprint.cpus_online))
    device = check_device()
    features = None
    if device.status == "ok":
        with contextlib.suppress(OSError):  # the checks that need it then report unknown
            features = read_kvm_features()
    checks = (
        *access,
        check_events(access),
        device,
        *check_kvm(fingerprint, features, vm),
        *check_machine(fingerprint, features, vm),
        *load,
    )
    return Examination(checks, vm)
