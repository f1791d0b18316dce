# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch`: show the IPIs of running VMs, without a program in the guests."""

import math
import time
from contextlib import ExitStack
from pathlib import Path

import click

from ipitrace.base.console import say_json, tell
from ipitrace.base.errors import InterruptedRunError, MeasurementError, UsageError
from ipitrace.base.signals import StopRequest, stop_event
from ipitrace.commands.exporting import Exporter
from ipitrace.commands.formats import format_options
from ipitrace.host.privileges import LOOK_INTO_PROCESSES, WRITE_FOR_OTHERS, Capability, keep_only
from ipitrace.render.formats import INTERVAL, JSON
from ipitrace.render.watch.screen import Show, live_screen, print_block
from ipitrace.vm import discover, pick
from ipitrace.watch import Watcher, WatchInterval

_SHORTEST_S, _LONGEST_S = 0.1, 3600.0


@click.command()
@click.option(
    "--vm",
    "name",
    metavar="VM",
    help="The VM: a libvirt domain, a QEMU or systemd machine name, or pid:N. Default: all VMs.",
)
@click.option(
    "--interval",
    "interval_s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(_SHORTEST_S, _LONGEST_S),
    metavar="S",
    help="Seconds from one display to the next.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(_SHORTEST_S),
    metavar="S",
    help="Stop after S seconds. Default: run until interrupted.",
)
@click.option(
    "-n",
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="List the N busiest pairs of each VM, 0 for all. The others are added up.",
)
@format_options(INTERVAL)
@click.option(
    "--openmetrics",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the totals to FILE as OpenMetrics; it is replaced at each interval.",
)
def watch(
    *,
    name: str | None,
    interval_s: float,
    duration_s: float | None,
    top: int,
    output_format: str,
    openmetrics: Path | None,
) -> None:
    """Show the IPIs of running VMs as the host sees them, interval by interval.

    Nothing runs in the guests. IPIs that leave no trace on the host are reported as invisible.
    Ctrl-C ends the command with a summary.
    """
    if math.isnan(interval_s) or math.isnan(duration_s or 0.0):
        raise UsageError("--interval and --duration take a number of seconds.", "Give a number.")
    as_json = output_format == JSON
    exporter = None if openmetrics is None else Exporter(openmetrics)
    found = discover()
    vm = pick(found, name) if name is not None else None
    with Watcher.open(found, vm, top=top) as watcher, stop_event() as stop:
        # From here on ipitrace only writes maps and reads the processes of others.
        written = WRITE_FOR_OTHERS if openmetrics is not None else frozenset[Capability]()
        keep_only({Capability.BPF, *LOOK_INTO_PROCESSES, *written})
        _loop(watcher, stop, interval_s, duration_s, exporter, as_json=as_json)
        summary = watcher.summary()
    if not as_json:
        print_block(summary)
    if summary.stopped is not None and vm is not None:
        raise MeasurementError(
            f"The VM {vm.name} has changed or ended: {summary.stopped}.",
            "The values until then are above.",
        )
    if stop.is_set() and duration_s is not None:
        raise InterruptedRunError("Interrupted.", "The values until then are above.")


def _loop(
    watcher: Watcher,
    stop: StopRequest,
    interval_s: float,
    duration_s: float | None,
    exporter: Exporter | None,
    *,
    as_json: bool,
) -> None:
    """Show intervals until a stop request, the end of the duration or the end of the VM."""
    with ExitStack() as outside, ExitStack() as stack:
        screen: Show | None = None if as_json else stack.enter_context(live_screen())
        next_s = time.monotonic()
        end_s = None if duration_s is None else next_s + duration_s
        while True:
            # After a display that took longer than the interval, a whole interval follows.
            next_s = max(next_s + interval_s, time.monotonic())
            if end_s is not None:
                next_s = min(next_s, end_s)
            stop.wait(max(next_s - time.monotonic(), 0))
            interval = watcher.sample()
            news = None if exporter is None else exporter.put(interval)
            if news and screen is None:
                tell(f"ipitrace: {news}")
            elif news:  # printed when the screen is restored; until then the screen shows the note
                outside.callback(tell, f"ipitrace: {news}")
            _show(interval, screen, exporter.note if exporter else "", as_json=as_json)
            over = end_s is not None and time.monotonic() >= end_s
            if over or stop.is_set() or interval.stopped is not None:
                return


def _show(interval: WatchInterval, screen: Show | None, note: str, *, as_json: bool) -> None:
    if as_json:
        say_json(INTERVAL.render(JSON, interval))
    elif screen is not None:
        screen(interval, note)
    else:
        print_block(interval)
