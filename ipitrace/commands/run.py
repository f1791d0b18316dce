# SPDX-License-Identifier: Apache-2.0
"""`ipitrace run`: measure."""

import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from ipitrace.errors import InterruptedRunError, MeasurementError
from ipitrace.guests import MICRO, open_guest
from ipitrace.pipeline import REPETITIONS, RunRequest, check_request
from ipitrace.pipeline import run as run_pipeline
from ipitrace.recording import RUN_FILE, RecordingWriter
from ipitrace.render.progress import ProgressBar
from ipitrace.render.tables import render_run
from ipitrace.result import RunResult
from ipitrace.storm.abi import StormInject
from ipitrace.storm.scenarios import ALL, DEFAULT_SCENARIOS, select_scenarios
from ipitrace.storm.via import FORMS
from ipitrace.units import NS_PER_S

_INJECTIONS = [i.name.lower().replace("_", "-") for i in StormInject if i != StormInject.NONE]


@click.command(short_help="Fire IPI storms in a guest and print what each IPI cost.")
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
    )
    check_request(request)
    directory = output or Path(f"ipitrace-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    with RecordingWriter(directory, force=force) as writer:
        with ProgressBar(enabled=not (quiet or as_json)) as bar:
            try:
                with open_guest(vm, via, trace=not no_trace) as guest:
                    result, failure = run_pipeline(request, guest, writer, bar.show)
            except KeyboardInterrupt:
                raise InterruptedRunError("Interrupted.", "Nothing was measured yet.") from None
        try:
            result = writer.finish(result)
        finally:
            _show(result, as_json=as_json, quiet=quiet, verbose=verbose)
    path = directory / RUN_FILE
    if not (quiet or as_json):
        click.echo(f"Wrote {path}", err=True)
    if failure is not None:
        raise failure
    if result.untrustworthy:
        raise MeasurementError(
            f"The numbers are not trustworthy: {'; '.join(result.untrustworthy)}.",
            f"Run again on a quieter host; what was measured is in {path}.",
        )


def _show(result: RunResult, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    try:
        if as_json:
            click.echo(result.to_json(), nl=False)
        elif not quiet:
            click.echo(render_run(result, verbose=verbose))
    except BrokenPipeError:
        # The verdict stands, whoever listens. What is still buffered has no reader either,
        # and Python would fail on it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
