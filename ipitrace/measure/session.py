# SPDX-License-Identifier: Apache-2.0
"""A complete run with one call, for programs: `ipitrace.run()`."""

import contextlib
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ipitrace.measure.guests import MICRO, open_guest
from ipitrace.measure.request import REPETITIONS, RunRequest
from ipitrace.measure.run import run as measure
from ipitrace.recording.result import RunResult
from ipitrace.recording.writer import RecordingWriter
from ipitrace.words.scenarios import DEFAULT_SCENARIOS, select_scenarios


class _Discard:
    """A sink that discards all rows."""

    def append(
        self, table: str, columns: Mapping[str, NDArray[Any]], meanings: Mapping[str, str]
    ) -> None:
        """Discard the rows."""


def run(
    vm: str = MICRO,
    *,
    via: str | None = None,
    scenarios: Iterable[str] = DEFAULT_SCENARIOS,
    count: int = 4000,
    repeat: int = REPETITIONS,
    pace_cycles: int | None = None,
    trace: bool = True,
    probe_costs: bool = False,
    seed: int | None = None,
    max_rate_hz: float | None = None,
    max_time_s: float | None = None,
    directory: str | Path | None = None,
    force: bool = False,
) -> RunResult:
    """Measure what IPIs cost in a guest, as `ipitrace run` does.

    A run that fails after some repetitions returns what was completed. `complete` is then False
    and `failure` is the reason. `untrustworthy` lists the reasons not to rely on the numbers.

    Args:
        vm: `micro`, `micro:N` for N vCPUs, `local`, or the name of a VM of this host.
        via: the transport into a running VM, as --via has it; None chooses its guest agent.
        scenarios: names of scenarios, or `all`.
        count: measured sends of each scenario, divided among its repetitions.
        repeat: repetitions of each scenario and mode.
        pace_cycles: TSC cycles from an acknowledgement to the next send; None: by scenario.
        trace: attach BPF programs; needs root. If False, only the guest's stamps are
            measured.
        probe_costs: also run repetitions in which the kernel accounts for the BPF programs;
            needs root and `trace`.
        seed: of the order in which scenarios take turns; None chooses one.
        max_rate_hz: sends per second at most; 0 is no limit, None is the default of the VM's kind.
        max_time_s: seconds of storms at most, with the same meaning of 0 and None.
        directory: where to write the recording; None writes none.
        force: replace a recording in `directory`.

    Raises:
        UsageError: there is no such VM or scenario, or a number is out of its range.
        HostError: the host or the guest cannot run the measurement.
        MeasurementError: nothing could be measured.
    """
    request = RunRequest(
        scenarios=select_scenarios(scenarios),
        count=count,
        pace_cycles=pace_cycles,
        trace=trace,
        probe_costs=probe_costs,
        repeat=repeat,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        max_rate_hz=max_rate_hz,
        max_time_s=max_time_s,
    )
    with contextlib.ExitStack() as stack:
        writer = None
        if directory is not None:
            writer = stack.enter_context(RecordingWriter(Path(directory), force=force))
        with open_guest(vm, via, trace=trace) as guest:
            result, _failure = measure(request, guest, writer or _Discard(), _no_progress)
        return result if writer is None else writer.finish(result)


def _no_progress(_scenario: str, _share: float) -> None:
    pass
