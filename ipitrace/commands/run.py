# SPDX-License-Identifier: Apache-2.0
"""`ipitrace run`: measure."""

import contextlib
import json
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from ipitrace.abi.storm import StormInject
from ipitrace.base.console import (
    output_width,
    say,
    say_json,
    tell,
)
from ipitrace.base.errors import (
    NOTHING_WRITTEN,
    InterruptedRunError,
    MeasurementError,
    ReaderLeftError,
)
from ipitrace.base.foreign import plain
from ipitrace.base.signals import interrupted_twice
from ipitrace.base.units import NS_PER_S
from ipitrace.host.privileges import (
    LOOK_INTO_PROCESSES,
    TRACE,
    WRITE_FOR_OTHERS,
    Capability,
    keep_only,
)
from ipitrace.measure.guests import (
    MICRO,
    open_guest,
)
from ipitrace.measure.limits import (
    DEFAULT_RATE_HZ,
    DEFAULT_TIME_S,
)
from ipitrace.measure.preview import preview
from ipitrace.measure.request import (
    REPETITIONS,
    RunRequest,
    check_request,
)
from ipitrace.measure.run import run as run_pipeline
from ipitrace.recording.result import RunResult
from ipitrace.recording.writer import (
    RUN_FILE,
    RecordingWriter,
)
from ipitrace.render.preview import render_preview
from ipitrace.render.progress import ProgressBar
from ipitrace.render.run.tables import render_run
from ipitrace.storm.transport.registry import (
    FORMS,
    LOCAL,
)
from ipitrace.words.scenarios import (
    ALL,
    DEFAULT_SCENARIOS,
    select_scenarios,
)

_INJECTIONS = [i.name.lower().replace("_", "-") for i in StormInject if i != StormInject.NONE]


def _limit(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """A number as given; 0 is none, and `unlimited` says the same."""
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
    help="The guest: micro, or micro:N for N vCPUs; a running VM's name or pid:N; "
    "or local, which is this machine itself.",
)
@click.option(
    "--via",
    metavar="URL",
    help=f"The way into a running VM: {FORMS}; its guest agent unless given. "
    "See 'ipitrace guest --help'.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help=f"A scenario to run; may be repeated. '{ALL}' is the whole table "
    f"(see 'ipitrace scenarios'). Default: {', '.join(DEFAULT_SCENARIOS)}.",
)
@click.option(
    "--count", default=4000, show_default=True, metavar="N", help="IPIs measured per scenario."
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
    help="Repetitions per scenario, among which --count is shared out; the more, the smaller "
    "the changes 'ipitrace compare' can prove. With fewer than 6 it can prove none, however "
    "large, in the default scenarios.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    metavar="N",
    help="Of the order in which scenarios take turns. Default: a new one each time.",
)
@click.option(
    "--max-rate",
    callback=_limit,
    metavar="N",
    help=f"Sends per second at most, in any storm; 'unlimited' lifts it. Default: "
    f"{DEFAULT_RATE_HZ:g} in a guest that is not ours.",
)
@click.option(
    "--max-time",
    callback=_limit,
    metavar="SECONDS",
    help="Seconds of storms at most; what was finished by then is kept. 'unlimited' lifts it. "
    f"Default: {DEFAULT_TIME_S:g} in a guest that is not ours.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be attached, sent, done in the guest and written, and do none of it; "
    "the guest is not connected to.",
)
@click.option("--no-trace", is_flag=True, help="Attach no BPF programs; needs only /dev/kvm.")
@click.option("--json", "as_json", is_flag=True, help="Print run.json and nothing else.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the recording goes. Default: ipitrace-<date>-<time> here.",
)
@click.option("--force", is_flag=True, help="Replace a recording that is in DIR already.")
@click.option("-q", "--quiet", is_flag=True, help="Print no tables and no progress.")
@click.option("-v", "--verbose", is_flag=True, help="Print also what was watched and how.")
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
    as_json: bool,
    output: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
    inject: str | None,
    burn_cycles: int,
) -> None:
    """Fire IPI storms in a guest and print what each IPI cost.

    The recording in DIR holds all of it; 'ipitrace report DIR' prints it again.
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
        max_rate_hz=max_rate,
        max_time_s=max_time,
    )
    check_request(request)
    directory = output or Path(f"ipitrace-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if dry_run:
        found = preview(request, vm, via, directory)
        if as_json:
            say_json(json.dumps(found.to_dict(), indent=2), end="\n")
        else:
            say(render_preview(found, output_width()).rstrip("\n"))
        return
    with _interruptions_told(), RecordingWriter(directory, force=force) as writer:
        with (
            ProgressBar(enabled=not (quiet or as_json)) as bar,
            open_guest(vm, via, trace=not no_trace) as guest,
        ):
            # In the guest that is this machine itself, modules come and go.
            for odd in guest.odd:
                tell(f"ipitrace: odd: {plain(odd)}")
            drop = _keep_what_is_needed if vm != LOCAL else _keep_all
            result, failure = run_pipeline(request, guest, writer, bar.show, drop)
        try:
            result = writer.finish(result)
        finally:
            _show(result, as_json=as_json, quiet=quiet, verbose=verbose)
    path = directory / RUN_FILE
    if not (quiet or as_json):
        tell(f"Wrote {path}")
    if failure is not None:
        raise failure
    if result.untrustworthy:
        raise MeasurementError(
            f"The numbers are not trustworthy: {'; '.join(result.untrustworthy)}.",
            f"Run again on a quieter host; what was measured is in {path}.",
        )


def _keep_what_is_needed() -> None:
    """Give up what no repetition needs, when programs are loaded and the guest is open."""
    # SYS_ADMIN: which BPF programs others have, and, beside SYS_NICE, what preempts the guest.
    kept = {Capability.SYS_ADMIN, Capability.SYS_NICE, Capability.KILL, Capability.SYS_RESOURCE}
    keep_only(kept | TRACE | LOOK_INTO_PROCESSES | WRITE_FOR_OTHERS)


def _keep_all() -> None:
    pass


@contextlib.contextmanager
def _interruptions_told() -> Iterator[None]:
    """What the interrupted run has kept, which is nothing if the interruption comes to here.

    The recording that was in the place before is there as it was.

    Raises:
        InterruptedRunError: instead of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        hint = NOTHING_WRITTEN
        if interrupted_twice():
            hint = "What was measured is not kept, since a second interruption came."
        raise InterruptedRunError("Interrupted.", hint) from None


def _show(result: RunResult, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    with contextlib.suppress(ReaderLeftError):  # the verdict stands, whoever listens
        if as_json:
            say_json(result.to_json())
        elif not quiet:
            say(render_run(result, verbose=verbose, width=output_width()))
