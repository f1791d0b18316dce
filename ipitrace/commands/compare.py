# SPDX-License-Identifier: Apache-2.0
"""`ipitrace compare`: compare recordings with a base."""

from pathlib import Path
from typing import Any

import click

from ipitrace.base.errors import ExitCode
from ipitrace.commands.comparison_options import EPILOG, ComparisonOptions, comparison_options

_RUN = click.Path(path_type=Path)


@click.command(epilog=EPILOG)
@click.argument("base", type=_RUN)
@click.argument("patched", type=_RUN, nargs=-1, required=True, metavar="PATCHED [MORE]...")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help="Compare this scenario only; may be repeated.",
)
@click.option(
    "--pair",
    "pairs",
    multiple=True,
    metavar="A=B",
    help="Compare scenario A of BASE with scenario B of the others; may be repeated. Only "
    "the pairs are compared.",
)
@comparison_options
def compare(
    *,
    base: Path,
    patched: tuple[Path, ...],
    scenarios: tuple[str, ...],
    pairs: tuple[str, ...],
    **options: Any,  # noqa: ANN401 - as click parsed them
) -> ExitCode:
    """Compare each recording with BASE. The last line of the output is the verdict.

    Each argument is a recording, a run.json, or a directory of several recordings of one
    configuration. With several recordings, differences from run to run are part of every
    interval (docs/statistics.md).

    Exit codes with gates (--fail-on, --require): 1 a gate is broken, otherwise 0. Without gates:
    1 a headline metric got worse, otherwise 0. In both cases: 3 the runs are not comparable; 4 a
    run is incomplete or not trustworthy, or --strict is given and the result is undecided.
    """
    from ipitrace.commands.comparing import compare_and_tell, settings_from  # noqa: PLC0415 - late
    from ipitrace.compare.reading import read_side  # noqa: PLC0415

    shared = ComparisonOptions.taken_from(options)
    settings = settings_from(shared, scenarios=scenarios, pairs=pairs)
    return compare_and_tell(
        (str(base), read_side(base)),
        [(str(path), read_side(path)) for path in patched],
        settings,
        shared,
    )
