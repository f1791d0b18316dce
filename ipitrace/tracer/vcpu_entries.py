# SPDX-License-Identifier: Apache-2.0
"""Observe for a moment, at KVM's own tracepoint, which thread enters which vCPU."""

import time
from typing import Final

from ipitrace.base import resources
from ipitrace.base.errors import HostError
from ipitrace.base.signals import signals_deferred
from ipitrace.host.access import require_initial_pid_namespace, require_trace_privilege
from ipitrace.tracer.bpf_links import ProgramRefusedError
from ipitrace.tracer.compiler import compile_programs
from ipitrace.tracer.formats import parse_format
from ipitrace.tracer.loading import Bpf
from ipitrace.tracer.tracefs import ensure_tracefs

_SOURCE: Final = "vcpu_entries.bpf.c"
_FUNCTION: Final = "entered"
_DURATION_S: Final = 0.1  # a vCPU that never idles still exits for the host's timer tick


def entering_threads(
    tracepoint: str = "kvm_entry", column: str = "vcpu_id", duration_s: float = _DURATION_S
) -> dict[int, int]:
    """vCPU id by thread, for all threads that entered a guest within `duration_s` seconds.

    kvm_entry has vcpu_id in every kernel from 4.18 on. A KVM without VMX and SVM may never reach
    it; the result is then empty. The program is removed when this process ends in any way.

    Args:
        tracepoint: another of KVM's tracepoints, one that fires in vCPU threads.
        column: the column of its record that has the vCPU's id.
        duration_s: how long to observe.

    Raises:
        HostError: BPF, bcc or tracefs cannot be used, or there is no such tracepoint.
    """
    require_trace_privilege()
    require_initial_pid_namespace()
    tracefs, absent = ensure_tracefs()
    if tracefs is None:
        raise HostError("tracefs is not available.", absent or "")
    try:
        text = (tracefs / "events" / "kvm" / tracepoint / "format").read_text()
        place = parse_format(text)[column]
    except (OSError, KeyError) as error:
        raise HostError(f"This KVM has no tracepoint {tracepoint} with {column}.", "") from error
    directory = resources.bpf_dir()
    source = (directory / _SOURCE).read_text()
    bpf = compile_programs(source, [f"-DVCPU_ID={place.offset}"], directory)
    return _observe(bpf, tracepoint, duration_s)


@signals_deferred()
def _observe(bpf: Bpf, tracepoint: str, duration_s: float) -> dict[int, int]:
    try:
        try:
            bpf.load(_FUNCTION, "classic")
            bpf.attach(_FUNCTION, f"kvm:{tracepoint}")
        except (ProgramRefusedError, OSError) as error:
            raise HostError(f"{tracepoint} cannot be attached: {error}", "") from error
        try:
            time.sleep(duration_s)
        finally:
            bpf.detach(_FUNCTION)
        return dict(bpf["vcpu_of_tid"].items())
    finally:
        bpf.close()
