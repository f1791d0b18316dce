# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.added FOLDER`: S, D and R of an IPI under each watcher, as JSON.

One storm for each watcher, and one without a watcher directly before it. This is enough where the
same storm always takes the same time, as on the lab's Intel host (`python -m lab.bench`).
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench import watchers
from bench.storms import Storms, medians, scenario
from bench.watchers import Watch
from ipitrace.storm.driver import Storm
from ipitrace.words.events import Kind

RESULT: Final = "added.json"
_SETTLE_S: Final = 2.0  # of the emulated host's time


@dataclass(frozen=True)
class Added:
    """One watcher of one scenario.

    Attributes:
        scenario: its name.
        watcher: its name.
        key: of a tool's files in the folder of the scenario's name; "" if it has none.
        sent: the measured IPIs.
        nothing: median S, D and R without a watcher, by letter, in the guest's TSC cycles.
        watched: the same with it; None if it does not run.
        why: the reason for None.
        counted: what ipitrace counted of each event during the measured IPIs.
    """

    scenario: str
    watcher: str
    key: str
    sent: int
    nothing: dict[str, float]
    watched: dict[str, float] | None = None
    why: str = ""
    counted: dict[str, int] = field(default_factory=dict)


def main() -> None:
    """Measure all watchers in all scenarios."""
    parser = argparse.ArgumentParser(prog="python -m bench.added", description=__doc__)
    parser.add_argument("folder", type=Path, help="for the result and for what the tools leave")
    parser.add_argument("--scenario", action="append", required=True, help="may be repeated")
    parser.add_argument("--count", type=int, default=400, help="IPIs of each storm")
    asked = parser.parse_args()
    found = []
    with ExitStack() as stack:
        own = watchers.own_watches(stack)
        for name in asked.scenario:
            for added in measure(Storms(scenario(name), asked.count), own, asked.folder / name):
                shown = added.watched or added.why
                print(f"{name}, {added.watcher}: {added.nothing} {shown}", flush=True)
                found.append(added)
    (asked.folder / RESULT).write_text(json.dumps([asdict(added) for added in found], indent=1))


def measure(storms: Storms, own: Mapping[str, Watch], folder: Path) -> Iterator[Added]:
    """S, D and R of these storms under each watcher, the other tools last.

    Args:
        storms: the storms.
        own: no watcher and ipitrace's modes, by name.
        folder: receives the other tools' files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watches = {(name, ""): watch for name, watch in own.items()}
    for peer in watchers.peers(folder, watchers.STAGE_TRACEPOINTS):
        watches[peer.name, peer.key] = partial(watchers.peer_watch, peer, folder, _SETTLE_S)
    for (name, key), watch in watches.items():
        nothing = medians(storms.run())
        found = partial(Added, storms.scenario.name, name, key, storms.count, nothing)
        try:
            with watch() as hooks:
                storm = storms.run(hooks)
        except watchers.DoesNotRunError as error:
            yield found(why=str(error))
        else:
            yield found(medians(storm), counted=_counted(storm))


def _counted(storm: Storm) -> dict[str, int]:
    if storm.counted is None:
        return {}
    return {
        kind.name.lower(): int(storm.counted[kind].sum())
        for kind in Kind
        if storm.counted[kind].any()
    }


if __name__ == "__main__":
    main()
