# SPDX-License-Identifier: Apache-2.0
"""What is run on an emulated host, and what came back, as tests ask for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ipitrace.recording.reader import read_run
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import PerSide, ScenarioResult
from ipitrace.words.scenarios import DEFAULT_SCENARIOS
from lab.common.command import WATCHED_COUNT
from lab.common.watched import RESULT

HV_SCENARIOS = (
    *("unicast-running-hv", "unicast-halted-hv", "broadcast-hv"),
    *("unicast-running-hv-ex", "broadcast-self-hv-ex"),
)
HV_TO_ALL = "broadcast-self-hv-ex"
WATCHED_SCENARIOS = ("unicast-running-hv", HV_TO_ALL)
AMD_SCENARIOS = (
    *(*DEFAULT_SCENARIOS, "unicast-masked", "unicast-running-xapic"),
    *HV_SCENARIOS,
)
INTEL_SCENARIOS = (
    *DEFAULT_SCENARIOS,
    "unicast-running-kernel",
    "unicast-masked",
    "unicast-running-xapic",
    *HV_SCENARIOS,
)
GROUP_SCENARIOS = (
    *("broadcast", "unicast-logical", "unicast-logical-xapic", "multicast-running"),
    *("multicast-xapic", "broadcast-self", "broadcast-self-xapic", "broadcast-pv", "multicast-pv"),
    "ring",
)
"""Sends with several targets or by logical ids, in a guest of four vCPUs on two CPUs."""
GROUP_VCPUS = 4
NO_APICV_SCENARIOS = ("unicast-running", "unicast-halted", "unicast-masked")


@dataclass(frozen=True)
class LabResult:
    """A run made inside.

    Attributes:
        output: the folder with the console's log and the recordings.
        printed: what ipitrace printed inside.
        name: of the recording's folder.
    """

    output: Path
    printed: str
    name: str = "recording"

    @property
    def recording(self) -> Path:
        return self.output / self.name

    @property
    def second(self) -> "LabResult":
        """The second run of the same boot."""
        return LabResult(self.output, (self.output / "second.txt").read_text(), "second")

    @cached_property
    def watched(self) -> Mapping[str, Any]:
        """What `watch` counted, by scenario: lab/common/watched.py."""
        found: Mapping[str, Any] = json.loads((self.output / RESULT).read_text())
        return found

    @cached_property
    def run(self) -> RunResult:
        return read_run(self.recording)

    def scenario(self, name: str) -> ScenarioResult:
        (found,) = (s for s in self.run.scenarios if s.name == name)
        return found

    def exits(self, name: str, side: str, reason: str) -> float:
        """Exits per IPI."""
        exits = self.scenario(name).exits
        assert exits is not None
        assert exits.source == "kvm_exit tracepoint"
        by_reason = getattr(exits, side)
        return 0.0 if by_reason is None else float(by_reason.get(reason, 0.0))

    def events(self, name: str, tracepoint: str) -> PerSide:
        """Events per IPI."""
        events = self.scenario(name).events_per_ipi
        assert events is not None
        return events[tracepoint]


def assert_watched(lab: LabResult, name: str) -> None:
    """In a storm by Hyper-V's hypercalls, `watch` counted exactly what the handlers counted.

    The hypercall to all processors also goes to the sender.
    """
    found = lab.watched[name]
    targets = (0, 1) if name == HV_TO_ALL else (1,)
    # `watch` may have seen the warm-up, too.
    count, before = int(WATCHED_COUNT), found["before"] // len(targets)
    assert found["sends"]["total"] - before == count
    assert found["handled"] == [count if vcpu in targets else 0 for vcpu in range(2)]
    pairs = {(p["sender"], p["target"], p["path"]): p["ipis"]["total"] for p in found["pairs"]}
    assert pairs == {(0, target, "hv-hypercall"): count + before for target in targets}
    assert found["ipis"]["total"] - found["before"] == count * len(targets)
    assert found["missed"]["total"] == found["unplaced"]["total"] == 0
    assert not {p["vector"] for p in found["pairs"]} & {o["vector"] for o in found["others"]}
