# SPDX-License-Identifier: Apache-2.0
"""`ipitrace doctor`: is this host fit to measure on?"""

import json

import click

from ipitrace.base.console import (
    output_width,
    say,
    say_json,
)
from ipitrace.base.errors import ExitCode
from ipitrace.doctor import examine
from ipitrace.render.doctor import render_examination


@click.command()
@click.option(
    "--vm", "vm_name", metavar="VM", help="Look at this VM, too: a name from 'ipitrace list'."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def doctor(*, vm_name: str | None, as_json: bool) -> int:
    """Say what speaks against measuring here, and what to do about it. Changes nothing.

    ok, warn, missing: 'ipitrace run' cannot trace (exit code 3), unknown: nothing here tells.
    """
    examination = examine(vm_name)
    if as_json:
        say_json(json.dumps(examination.to_dict(), indent=2), end="\n")
    else:
        say(render_examination(examination, output_width()), end="")
    return ExitCode.OK if examination.can_run else ExitCode.ENVIRONMENT
