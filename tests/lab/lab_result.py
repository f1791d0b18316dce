# SPDX-License-Identifier: Apache-2.0
"""What is run on an emulated host, and what came back, as tests ask for it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ipitrace.recording.reader import read_run
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import PerSide, ScenarioResult
from ipitrace.words.scenarios import DEFAULT_SCENARIOS

AMD_SCENARIOS = (*DEFAULT_SCENARIOS, "unicast-masked", "unicast-running-xapic")
INTEL_SCENARIOS = (
    *DEFAULT_SCENARIOS,
    "unicast-running-kernel",
    "unicast-masked",
    "unicast-running-xapic",
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
