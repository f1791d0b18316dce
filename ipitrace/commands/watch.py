# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch`: what running VMs do, without their cooperation."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click

from ipitrace.errors import InterruptedRunError, MeasurementError, UsageError
from ipitrace.host.privileges import (
    LOOK_INTO_PROCESSES,
    WRITE_FOR_OTHERS,
    Capability,
    keep_only,
)
from ipitrace.render.watch_openmetrics import render_openmetrics
from ipitrace.render.watch_screen import Show, live_screen, print_block
from ipitrace.vm import discover, pick
from ipitrace.watch import Interval, Watcher

_SHORTEST_S, _LONGEST_S = 0.1, 3600.0


@click.command(short_help="Show the IPIs of running VMs as the host sees them.")
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
    help="Stop after so many seconds. Default: when interrupted.",
)
@click.option(
    "-n",
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="List the N busiest pairs of each VM, 0 for all; the others are added up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each interval.")
@click.option(
    "--openmetrics",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also keep the totals in FILE, replaced whole at each interval.",
)
def watch(
    *,
    name: str | None,
    interval_s: float,
    duration_s: float | None,
    top: int,
    as_json: bool,
    openmetrics: Path | None,
) -> None:
    """Show the IPIs of running VMs as the host sees them, interval by interval.

    Nothing runs in the guests. IPIs that leave no trace on the host are said to be
    invisible. Ctrl-C ends it with a summary.
    """
    if openmetrics is not None and not openmetrics.absolute().parent.is_dir():
        raise UsageError(
            f"There is no directory {openmetrics.absolute().parent}.",
            "Create it, or name another file.",
        )
    found = discover()
    vm = pick(found, name) if name is not None else None
    with Watcher.open(found, vm, top=top) as watcher, _interruptions() as stop:
        # From here on maps are written and others' processes looked into, and no more.
        written = WRITE_FOR_OTHERS if openmetrics is not None else frozenset[Capability]()
        keep_only({Capability.BPF, *LOOK_INTO_PROCESSES, *written})
        _loop(watcher, stop, interval_s, duration_s, openmetrics, as_json=as_json)
        summary = watcher.summary()
    if not as_json:
        print_block(summary)
    if summary.stopped is not None and vm is not None:
        raise MeasurementError(
            f"The VM {vm.name} is no longer what it was: {summary.stopped}.",
            "What was seen until then stands above.",
        )
    if stop.is_set() and duration_s is not None:
        raise InterruptedRunError("Interrupted.", "What was seen until then stands above.")


def _loop(
    watcher: Watcher,
    stop: threading.Event,
    interval_s: float,
    duration_s: float | None,
    openmetrics: Path | None,
    *,
    as_json: bool,
) -> None:
    """Show interval after interval, until told to stop, the time is over or the VM is gone."""
    with ExitStack() as stack:
        screen: Show | None = None if as_json else stack.enter_context(live_screen())
        next_s = time.monotonic()
        end_s = None if duration_s is None else next_s + duration_s
        while True:
            # A display that took longer than the interval is followed by a whole one.
            next_s = max(next_s + interval_s, time.monotonic())
            if end_s is not None:
                next_s = min(next_s, end_s)
            stop.wait(max(next_s - time.monotonic(), 0))
            interval = watcher.sample()
            if openmetrics is not None:
                _replace(openmetrics, render_openmetrics(interval))
            _show(interval, screen, as_json=as_json)
            over = end_s is not None and time.monotonic() >= end_s
            if over or stop.is_set() or interval.stopped is not None:
                return


def _show(interval: Interval, screen: Show | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(interval.to_json())
    elif screen is not None:
        screen(interval)
    else:
        print_block(interval)


def _replace(path: Path, text: str) -> None:
    """Put `text` in place of the file at once: no reader ever sees half of it.

    Raises:
        UsageError: the directory cannot be written to.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}).", "Name a file in a writable directory."
        ) from error


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that a display is never left half done; the second one kills."""
    stop = threading.Event()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in former:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
