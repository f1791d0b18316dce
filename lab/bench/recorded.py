# SPDX-License-Identifier: Apache-2.0
"""How many of each event a tool recorded, from the files that it left."""

import re
from collections import Counter
from pathlib import Path
from typing import Final

from bench.watchers import DATA, PRINTED
from lab.bench.host import run_on_folder

_PERF: Final = ("perf", "script", "--force", "--fields", "event", "--input")
_READERS: Final = {
    "perf-kvm-stat": _PERF,
    "perf-record": _PERF,
    "trace-cmd": ("trace-cmd", "report", "-i"),
}
_EVENT: Final = (
    re.compile(r"^ *\w+:(?P<event>\w+):"),  # perf script
    re.compile(r"^.*?\[\d+\]\s+(\S+\s+)?[\d.]+: +(?P<event>\w+):"),  # trace-cmd report
    re.compile(r"^@\[tracepoint:\w+:(?P<event>\w+)\]: (?P<n>\d+)$"),  # bpftrace
)


def read_recorded(folder: Path, key: str) -> dict[str, int]:
    """Events of each name that a tool recorded or counted.

    Args:
        folder: has the tool's files.
        key: their name.

    Raises:
        LabError: the tool's own reader does not accept its file.
    """
    if key not in _READERS:
        return count_events((folder / f"{key}{PRINTED}").read_text(errors="replace"))
    return count_events(run_on_folder(list(_READERS[key]), folder, f"{key}{DATA}"))


def count_events(text: str) -> dict[str, int]:
    """Events of each name in a listing by perf or trace-cmd, or in a map that bpftrace printed."""
    counted: Counter[str] = Counter()
    for line in text.splitlines():
        match = next(filter(None, (form.match(line) for form in _EVENT)), None)
        if match:
            counted[match["event"]] += int(match.groupdict().get("n") or 1)
    return dict(counted)
