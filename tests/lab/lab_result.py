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
NO_APICV_SCENARIOS = ("unicast-running", "unicast-halted", "unicast-masked")


@dataclass(frozen=True)
class LabResult:
    """A run made inside.

    Attributes:
        output: the folder with the console's log and the recording.
        printed: what ipitrace printed inside.
    """

    output: Path
    printed: str

    @property
    def recording(self) -> Path:
        return self.output / "recording"

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
