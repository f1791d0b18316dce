# SPDX-License-Identifier: Apache-2.0
"""`ipitrace run`: measure IPIs in a guest."""

import contextlib
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from ipitrace.abi.storm import StormInject
from ipitrace.base.console import output_width, tell
from ipitrace.base.errors import (
    NOTHING_WRITTEN,
    InterruptedRunError,
    MeasurementError,
    ReaderLeftError,
)
from ipitrace.base.foreign import plain
from ipitrace.base.signals import interrupted_twice
from ipitrace.base.units import NS_PER_S
from ipitrace.commands.formats import (
    format_options,
    print_document,
    print_run,
    require_format,
    run_document,
    section_option,
)
from ipitrace.host.privileges import (
    LOOK_INTO_PROCESSES,
    TRACE,
    WRITE_FOR_OTHERS,
    Capability,
    keep_only,
)
from ipitrace.measure.guests import MICRO, open_guest
from ipitrace.measure.limits import DEFAULT_RATE_HZ, DEFAULT_TIME_S
from ipitrace.measure.preview import preview
from ipitrace.measure.request import REPETITIONS, RunRequest, check_request
from ipitrace.measure.run import run as run_pipeline
from ipitrace.recording.writer import RUN_FILE, RecordingWriter
from ipitrace.render.formats import PREVIEW, RUN, TABLE
from ipitrace.render.progress import ProgressBar
from ipitrace.storm.transport.registry import FORMS, LOCAL
from ipitrace.words.scenarios import ALL, DEFAULT_SCENARIOS, select_scenarios

_INJECTIONS = [i.name.lower().replace("_", "-") for i in StormInject if i != StormInject.NONE]


def _limit(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """The number; 0 and `unlimited` mean no limit."""
    try:
        return None if value is None else float("0" if value == "unlimited" else value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor 'unlimited'") from None


@click.command()
@click.option(
    "--vm",
    default=MICRO,
    show_default=True,
    metavar="VM",
    help="The guest: micro, or micro:N with N vCPUs; the name of a running VM, or pid:N; "
    "or local for this machine itself.",
)
@click.option(
    "--via",
    metavar="URL",
    help=f"The transport to a running VM: {FORMS}. Default: the guest agent. "
    "See 'ipitrace guest --help'.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help=f"A scenario to run; may be repeated. '{ALL}' selects all scenarios "
    f"(see 'ipitrace scenarios'). Default: {', '.join(DEFAULT_SCENARIOS)}.",
)
@click.option(
    "--count",
    default=4000,
    show_default=True,
    metavar="N",
    help="Sends measured per scenario; scenarios with overcommit have at most 50 in a repetition.",
)
@click.option(
    "--pace",
    type=int,
    metavar="CYCLES",
    help="TSC cycles from one acknowledgement to the next send. Default: by scenario.",
)
@click.option(
    "--repeat",
    default=REPETITIONS,
    show_default=True,
    metavar="N",
    help="Repetitions per scenario; --count is divided among them. With more repetitions, "
    "'ipitrace compare' can prove smaller changes. With fewer than 6 it can prove no change, "
    "however large, in the default scenarios.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    metavar="N",
    help="Seed of the order in which scenarios alternate. Default: a new one for each run.",
)
@click.option(
    "--max-rate",
    callback=_limit,
    metavar="N",
    help=f"At most N sends per second in any storm, or 'unlimited'. Default: "
    f"{DEFAULT_RATE_HZ:g} in a guest that ipitrace did not start.",
)
@click.option(
    "--max-time",
    callback=_limit,
    metavar="SECONDS",
    help="At most so many seconds of storms, or 'unlimited'. Completed repetitions are kept. "
    f"Default: {DEFAULT_TIME_S:g} in a guest that ipitrace did not start.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what the run would attach, send, do in the guest and write, and do none of it. "
    "ipitrace does not connect to the guest. Formats: table, json.",
)
@click.option("--no-trace", is_flag=True, help="Attach no BPF programs; only /dev/kvm is needed.")
@click.option(
    "--probe-costs",
    is_flag=True,
    help="Also have the kernel account for each BPF program, in repetitions of their own after all "
    "others. Meanwhile, every BPF program of this host is slower.",
)
@format_options(RUN)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the recording. Default: ipitrace-<date>-<time> in the current directory.",
)
@click.option("--force", is_flag=True, help="Replace an existing recording in DIR.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print no table and no progress. Other formats are printed."
)
@section_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Print all tables, and what was traced, and how."
)
@click.option("--inject", type=click.Choice(_INJECTIONS), hidden=True)
@click.option("--burn-cycles", default=0, type=click.IntRange(0, NS_PER_S), hidden=True)
def run(
    *,
    vm: str,
    via: str | None,
    scenarios: tuple[str, ...],
    count: int,
    pace: int | None,
    repeat: int,
    seed: int | None,
    max_rate: float | None,
    max_time: float | None,
    dry_run: bool,
    no_trace: bool,
    probe_costs: bool,
    output_format: str,
    output: Path | None,
    force: bool,
    quiet: bool,
    sections: tuple[str, ...],
    verbose: bool,
    inject: str | None,
    burn_cycles: int,
) -> None:
    """Run IPI storms in a guest and print the cost of an IPI.

    The recording in DIR contains all results; 'ipitrace report DIR' prints them again.
    """
    request = RunRequest(
        scenarios=select_scenarios(scenarios or DEFAULT_SCENARIOS),
        count=count,
        pace_cycles=pace,
        trace=not no_trace,
        command=tuple(sys.argv[1:]),
        inject=inject,
        repeat=repeat,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        handler_burn_cycles=burn_cycles,
        probe_costs=probe_costs,
        max_rate_hz=max_rate,
        max_time_s=max_time,
    )
    if dry_run:
        require_format(PREVIEW, output_format)
    check_request(request)
    directory = output or Path(f"ipitrace-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if dry_run:
        found = preview(request, vm, via, directory)
        text = PREVIEW.render(output_format, found, width=output_width())
        print_document(text, output_format)
        return
    talks = output_format == TABLE and not quiet
    with _interruptions_told(), RecordingWriter(directory, force=force) as writer:
        with (
            ProgressBar(enabled=talks) as bar,
            open_guest(vm, via, trace=not no_trace) as guest,
        ):
            # With --vm local, modules are loaded and unloaded during the run.
            for odd in guest.odd:
                tell(f"ipitrace: odd: {plain(odd)}")
            drop = _keep_what_is_needed if vm != LOCAL else _keep_all
            result, failure = run_pipeline(request, guest, writer, bar.show, drop)
        try:
            result = writer.finish(result)
        finally:
            if talks or output_format != TABLE:
                text = run_document(result, output_format, sections, verbose=verbose)
                # The exit code does not depend on the reader of standard output.
                with contextlib.suppress(ReaderLeftError):
                    print_run(text, output_format)
    path = directory / RUN_FILE
    if talks:
        tell(f"Wrote {path}")
    if failure is not None:
        raise failure
    if result.untrustworthy:
        raise MeasurementError(
            f"The numbers are not trustworthy: {'; '.join(result.untrustworthy)}.",
            f"Run again on a quieter host. The measured values are in {path}.",
        )


def _keep_what_is_needed() -> None:
    """Drop the capabilities that no repetition needs; programs are loaded, the guest is open."""
    # SYS_ADMIN: to list the BPF programs of others, and with SYS_NICE for what preempts the guest.
    kept = {Capability.SYS_ADMIN, Capability.SYS_NICE, Capability.KILL, Capability.SYS_RESOURCE}
    keep_only(kept | TRACE | LOOK_INTO_PROCESSES | WRITE_FOR_OTHERS)


def _keep_all() -> None:
    pass


@contextlib.contextmanager
def _interruptions_told() -> Iterator[None]:
    """Report what an interrupted run has kept: nothing, if the interruption arrives here.

    A recording that was in the directory before is unchanged.

    Raises:
        InterruptedRunError: instead of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        hint = NOTHING_WRITTEN
        if interrupted_twice():
            hint = "The measured values are not kept, because a second interruption came."
        raise InterruptedRunError("Interrupted.", hint) from None
