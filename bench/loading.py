# SPDX-License-Identifier: Apache-2.0
"""The time to load and attach the BPF programs."""

import os

from bench.report import SECONDS, Report, Series, spread
from ipitrace.tracer import Tracer

_TIMES = 6


def loading() -> Report:
    """Load, attach and detach all programs that this kernel supports."""
    load, attach, detach = [], [], []
    programs = 0
    for _ in range(_TIMES):
        with Tracer.load(pid=os.getpid(), n_vcpus=2) as tracer:
            tracer.attach()
            programs = len(tracer.attached)
            tracer.detach()
            load.append(tracer.load_s)
            attach.append(tracer.attach_s)
            detach.append(tracer.detach_s)
    steps = {"load": load, "attach": attach, "detach": detach}
    return Report(
        f"Loading {programs} BPF programs",
        ("step", "ms"),
        [(step, spread((s * 1000 for s in taken), 0)) for step, taken in steps.items()],
        (
            f"{_TIMES} times; medians (minimum to maximum).",
            "Load: read BTF, take the compiled programs from the cache, verify, map the rings.",
        ),
        [Series(f"loading {step}", SECONDS, taken) for step, taken in steps.items()],
    )
