# SPDX-License-Identifier: Apache-2.0
"""One recorded IPI without the weight of ipitrace's programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.events import EventIndex
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.weights import programs_passed
from ipitrace.recording.row import EventWeights
from ipitrace.summary.weights import Weights, stamps_without_weight
from ipitrace.words.events import HOST_EVENT_BY_NAME
from ipitrace.words.stages import STAGES, Stage


def ipi_without_weight(
    span: Mapping[str, Any], events: Sequence[Mapping[str, Any]], weights: EventWeights
) -> dict[str, int]:
    """Stage to guest TSC, as if nothing had been traced.

    Args:
        span: the IPI's row of the table `spans`; its repetition had the mode STAGES.
        events: the rows of `host_events` of the same time.
        weights: of its scenario.
    """
    tsc = np.full((1, len(Stage)), ABSENT)
    for spec in STAGES:
        if (stamp := span.get(f"{spec.name}_tsc")) is not None:
            tsc[0, spec.stage] = stamp
    known = [e for e in events if e["vcpu"] is not None and e["kind"] in HOST_EVENT_BY_NAME]
    records = np.zeros(len(known), HOST_EVENT)
    records["vcpu"] = [e["vcpu"] for e in known]
    records["word"] = [e["word"] for e in known]
    records["detail"] = [e["detail"] or 0 for e in known]
    records["kind"] = [HOST_EVENT_BY_NAME[e["kind"]].kind for e in known]
    stamps = np.array([e["tsc"] for e in known], np.int64)
    passed = programs_passed(
        EventIndex(records, stamps),
        tsc.min(axis=1, where=tsc != ABSENT, initial=np.iinfo(np.int64).max),
        tsc,
        sender=span["sender"],
        target=span["target"],
    )
    (lighter,) = stamps_without_weight(tsc, passed, Weights.of(weights))
    return {s.name: int(lighter[s.stage]) for s in STAGES if lighter[s.stage] != ABSENT}
