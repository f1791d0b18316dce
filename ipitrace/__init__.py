# SPDX-License-Identifier: Apache-2.0
"""ipitrace: what an inter-processor interrupt costs on a real KVM host.

For programs and notebooks (docs/api.md); everything else in the package is private:

    open_recording  a recording as Arrow tables and data frames
    run             a whole run by one call
    find_vms        the VMs of this host, as `ipitrace list` shows them
    resolve_vm      one of them by name
    still_there     why a VM is no longer the one it was

Errors are classes of ipitrace.base.errors: IpitraceError and those below it.
"""

import importlib
import os
from typing import TYPE_CHECKING, Final

# NumPy's BLAS would start a thread for each CPU, though nothing here multiplies matrices, and
# Arrow's allocator one that tidies up. They would keep the privileges that a command gives up
# (see host/privileges.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

from ipitrace.base import version

__version__ = version.VERSION

if TYPE_CHECKING:
    from ipitrace.base.errors import HostError, IpitraceError, MeasurementError, UsageError
    from ipitrace.measure.session import run
    from ipitrace.recording.frames import Recording, open_recording
    from ipitrace.recording.result import RunResult
    from ipitrace.vm import VirtualMachine, find_vms, resolve_vm, still_there

__all__ = [
    "HostError",
    "IpitraceError",
    "MeasurementError",
    "Recording",
    "RunResult",
    "UsageError",
    "VirtualMachine",
    "__version__",
    "find_vms",
    "open_recording",
    "resolve_vm",
    "run",
    "still_there",
]

_HOMES: Final = {
    "ipitrace.base.errors": ("HostError", "IpitraceError", "MeasurementError", "UsageError"),
    "ipitrace.measure.session": ("run",),
    "ipitrace.recording.frames": ("Recording", "open_recording"),
    "ipitrace.recording.result": ("RunResult",),
    "ipitrace.vm": ("VirtualMachine", "find_vms", "resolve_vm", "still_there"),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line must start fast."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
