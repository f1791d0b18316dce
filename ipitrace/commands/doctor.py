# SPDX-License-Identifier: Apache-2.0
"""`ipitrace doctor`: is this host fit to measure on?"""

import click

from ipitrace.base.console import output_width
from ipitrace.base.errors import ExitCode
from ipitrace.commands.formats import format_options, print_document
from ipitrace.doctor import examine
from ipitrace.render.formats import EXAMINATION


@click.command()
@click.option(
    "--vm", "vm_name", metavar="VM", help="Look at this VM, too: a name from 'ipitrace list'."
)
@format_options(EXAMINATION)
def doctor(*, vm_name: str | None, output_format: str) -> int:
    """Say what speaks against measuring here, and what to do about it. Changes nothing.

    ok, warn, missing: 'ipitrace run' cannot trace (exit code 3), unknown: nothing here tells.
    """
    examination = examine(vm_name)
    text = EXAMINATION.render(output_format, examination, width=output_width())
    print_document(text, output_format)
    return ExitCode.OK if examination.can_run else ExitCode.ENVIRONMENT
