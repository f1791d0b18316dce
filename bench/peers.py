# SPDX-License-Identifier: Apache-2.0
"""The effect of tracing on an IPI: ipitrace compared with other tools, in one run."""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench import watchers
from bench.report import CYCLES, Report, Series, spread
from bench.storms import Storms, deliver_cycles, mirrored, scenario
from ipitrace.tracer.events import EVENTS

_ROUNDS = 5
_COUNT = 1000
_SETTLE_S: Final = 0.3


def peers() -> Report:
    """Median D of the micro-guest: untraced, traced by ipitrace, and traced by each other tool."""
    storms = Storms(scenario("unicast-running"), _COUNT)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        watches = watchers.own_watches(stack)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipitrace-bench-")))
        for peer in watchers.peers(scratch, [event.name for event in EVENTS if event.category]):
            watch = partial(watchers.peer_watch, peer, scratch, _SETTLE_S)
            try:
                with watch():
                    watches[peer.name] = watch
            except watchers.DoesNotRunError as error:
                missing[peer.name] = str(error)
        cycles: dict[str, list[float]] = {name: [] for name in watches}
        storms.run()
        for name in mirrored(list(watches), _ROUNDS):
            with watches[name]() as hooks:
                cycles[name].append(deliver_cycles(storms.run(hooks)))
    nothing = cycles[watchers.NOTHING]
    rows: list[tuple[str, str, str]] = [
        (name, spread(taken, 0), spread((b / a for a, b in zip(nothing, taken, strict=True)), 3))
        for name, taken in cycles.items()
    ]
    rows += [(name, why, "") for name, why in missing.items()]
    return Report(
        "Median D of an IPI, by tracing tool",
        ("traced by", "D, cycles", "ratio to nothing"),
        rows,
        (
            f"{_ROUNDS} rounds in mirrored order: median (minimum to maximum).",
            f"In each round a storm of {_COUNT} IPIs ({storms.scenario.name}) in a new guest.",
            "kvmexit traces kvm_exit only: where this event does not fire, it costs nothing.",
            "The same tracepoints: those that ipitrace traces; bpftrace for our process only.",
        ),
        [Series(f"D watched by {name}", CYCLES, taken) for name, taken in cycles.items()],
    )
