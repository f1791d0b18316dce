# SPDX-License-Identifier: Apache-2.0
"""`ipitrace doctor`: check whether this host can be measured."""

import click

from ipitrace.base.console import output_width
from ipitrace.base.errors import ExitCode
from ipitrace.commands.formats import format_options, print_document
from ipitrace.doctor import examine
from ipitrace.render.formats import EXAMINATION


@click.command()
@click.option(
    "--vm", "vm_name", metavar="VM", help="Also check this VM: a name from 'ipitrace list'."
)
@format_options(EXAMINATION)
def doctor(*, vm_name: str | None, output_format: str) -> int:
    """Report what prevents or disturbs measurements here, and what to do. Changes nothing.

    Each check is ok, warn (results are affected or incomplete), missing ('ipitrace run' cannot
    trace; exit code 3) or unknown (the host does not show it).
    """
    examination = examine(vm_name)
    text = EXAMINATION.render(output_format, examination, width=output_width())
    print_document(text, output_format)
    return ExitCode.OK if examination.can_run else ExitCode.ENVIRONMENT
