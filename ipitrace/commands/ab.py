# SPDX-License-Identifier: Apache-2.0
"""`ipitrace ab`: measure two configurations alternately, A B B A, and compare them."""

import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ipitrace.base.console import tell
from ipitrace.base.defects import DefectError
from ipitrace.base.errors import (
    NOTHING_WRITTEN,
    ExitCode,
    HostError,
    InterruptedRunError,
    IpitraceError,
    MeasurementError,
    UsageError,
)
from ipitrace.base.units import KIB
from ipitrace.commands.comparison_options import EPILOG, ComparisonOptions, comparison_options
from ipitrace.commands.turns import Turns
from ipitrace.host.child import Child
from ipitrace.host.programs import clean_environment, find_program, own_command

_SAID_BYTES = 64 * KIB  # of the stderr of a run with --quiet
_LOOK_S = 0.5  # between checks whether a run has ended; each is a wake-up on the measured host
_ENDING_S = 60.0  # for an interrupted run to write its completed repetitions

# Few IPIs in one fresh guest for each scenario: a run is one repetition. Options of the user
# come after these and replace them. docs/statistics.md gives the reason.
_OF_A_VISIT = ("--repeat", "1", "--count", "1000")


@click.command(
    epilog=EPILOG,
    context_settings={"ignore_unknown_options": True},
)
@click.option(
    "--a", "command_a", required=True, metavar="CMD", help="Shell command that sets up A."
)
@click.option(
    "--b", "command_b", required=True, metavar="CMD", help="Shell command that sets up B."
)
@click.option(
    "--a-run", default="", metavar="OPTIONS", help="Options of 'ipitrace run' for A only."
)
@click.option(
    "--b-run", default="", metavar="OPTIONS", help="Options of 'ipitrace run' for B only."
)
@click.option(
    "--rounds",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="How often each of A and B is measured.",
)
@click.option(
    "-o",
    "--recordings",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory for the recordings. Default: ipitrace-ab-<date>-<time> in the current "
    "directory.",
)
@click.option(
    "--retries",
    default=0,
    show_default=True,
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Repeat a measurement that is not trustworthy (exit code 4) up to N times. Each retry "
    "is reported on standard error.",
)
@comparison_options
@click.argument("run_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- RUN OPTIONS]")
def ab(
    *,
    command_a: str,
    command_b: str,
    a_run: str,
    b_run: str,
    rounds: int,
    recordings: Path | None,
    retries: int,
    run_options: tuple[str, ...],
    **options: Any,  # noqa: ANN401 - as click parsed them
) -> ExitCode:
    """Measure two configurations alternately and compare B with A.

    Before each measurement the shell runs CMD ('true' changes nothing). Then 'ipitrace run' runs
    with RUN OPTIONS. The order is A B, B A, A B, ..., so that a drift of the host affects both
    sides. At the end A is set up again, also after an error. DIR/a and DIR/b hold the recordings;
    'ipitrace compare DIR/a DIR/b' compares them again. Exit codes are those of 'ipitrace compare'.

    By default a measurement is '--repeat 1 --count 1000': one fresh guest for each scenario. It
    takes seconds, so that the sides alternate often. RUN OPTIONS replace these values. A
    measurement counts as one value, however many IPIs it has. More --rounds therefore give more
    information than a larger --count.

    Progress, and the directory of the recordings, are printed on standard error.
    """
    from ipitrace.commands.comparing import compare_and_tell, settings_from  # noqa: PLC0415 - late
    from ipitrace.compare.reading import read_side  # noqa: PLC0415

    shared = ComparisonOptions.taken_from(options)
    settings = settings_from(shared, interleaved=True)  # before hours of measuring
    directory = recordings or Path(f"ipitrace-ab-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    _check_free(directory)
    sides = {
        "a": (command_a, [*run_options, *_words(a_run)]),
        "b": (command_b, [*run_options, *_words(b_run)]),
    }
    times = "round" if rounds == 1 else "rounds"
    tell(f"ipitrace: measuring A and B in {rounds} {times}; the recordings go to {directory}")
    try:
        _take_turns(sides, rounds, directory, retries)
    except IpitraceError as error:
        if _holds_recordings(directory):
            error.hint = f"{_kept(directory)} {error.hint}"
        raise
    except KeyboardInterrupt:
        hint = _kept(directory) if _holds_recordings(directory) else NOTHING_WRITTEN
        raise InterruptedRunError("Interrupted.", hint) from None
    again = shlex.join(["ipitrace", "compare", str(directory / "a"), str(directory / "b")])
    tell(f"ipitrace: all rounds are measured; to compare them again: {again}")
    base, patched = ((name.upper(), read_side(directory / name)) for name in sides)
    return compare_and_tell(base, [patched], settings, shared)


def _check_free(directory: Path) -> None:
    hint = "Choose another directory with -o."
    try:
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty.", hint)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{directory} cannot be used: {error.strerror}.", hint) from error


def _holds_recordings(directory: Path) -> bool:
    from ipitrace.recording.writer import RUN_FILE  # noqa: PLC0415 - late

    return any(directory.glob(f"[ab]/*/{RUN_FILE}"))


def _kept(directory: Path) -> str:
    return f"Completed measurements are kept in {directory}."


def _take_turns(
    sides: Mapping[str, tuple[str, Sequence[str]]], rounds: int, directory: Path, retries: int
) -> None:
    """Measure A B, B A, A B, ...; each side has its own directory, with one recording a round.

    At the end A is set up, also after an error.
    """
    now = "a"
    try:
        with Turns(rounds) as turns:
            for i in range(rounds):
                for now in ("ab", "ba")[i % 2]:
                    command, extra = sides[now]
                    _set_up(now, command)
                    turns.starts(i + 1, now)
                    _measure(directory / now / f"{i + 1:03}", extra, retries, turns)
                    turns.ended(i + 1)
    finally:
        if now == "b":
            _set_up("a", sides["a"][0])


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"'{text}' is not a list of options: {error}.", "Check its quotes."
        ) from None


def _set_up(name: str, command: str) -> None:
    """Run the user's command in a shell whose PATH has no folder that others may write to.

    The command shares our process group. It is not ended when ipitrace is interrupted, because a
    host that is half set up is worse than one that is set up.
    """
    done = subprocess.run(
        [find_program("sh"), "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env=clean_environment(),
        check=False,
    )
    if done.returncode:
        raise HostError(
            f"The command that sets up {name.upper()} failed, code {done.returncode}: {command}",
            "Run the command by itself to see why.",
        )


def _measure(place: Path, extra: Sequence[str], retries: int, turns: Turns) -> None:
    """One run, repeated while the result is not trustworthy.

    Raises:
        UsageError, HostError, MeasurementError, InterruptedRunError: as the last run ended.
    """
    for left in reversed(range(retries + 1)):
        try:
            _run(place, extra, turns.goes_on)
        except MeasurementError as error:
            if not left:
                raise
            turns.says(f"ipitrace: {error.message} The measurement is repeated.")
        else:
            return


def _run(place: Path, extra: Sequence[str], tick: Callable[[], None]) -> None:
    """One run in its own process, so that no run inherits the state of another.

    Args:
        place: directory of the recording.
        extra: options of the run.
        tick: called regularly while the run runs.

    Raises:
        UsageError, HostError, MeasurementError, InterruptedRunError: as that run ended.
    """
    words = [
        "run",
        *_OF_A_VISIT,
        *extra,
        "-q",
        "--force",  # replaces a recording that is not trustworthy
        "-o",
        str(place),
    ]
    child = Child(
        own_command(*words),
        limit_bytes=0,
        stderr_limit_bytes=_SAID_BYTES,
        stdout=None,
    )
    with child:
        try:
            status = child.finish(math.inf, tick, pause_s=_LOOK_S)
        except KeyboardInterrupt:
            child.end(signal.SIGINT, _ENDING_S)
            raise
    if status == ExitCode.OK:
        return
    kinds: dict[int, type[IpitraceError]] = {
        ExitCode.USAGE: UsageError,
        ExitCode.UNTRUSTWORTHY: MeasurementError,
        ExitCode.DEFECT: DefectError,
        ExitCode.INTERRUPTED: InterruptedRunError,
    }
    text = child.err.decode(errors="replace")
    said = " ".join(text.split()).removeprefix("ipitrace: ")
    raise kinds.get(status, HostError)(
        f"The run {place.parent.name}/{place.name} failed: {said}",
        f"The command was: {shlex.join(['ipitrace', *words])}",
    )
