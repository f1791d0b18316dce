# SPDX-License-Identifier: Apache-2.0
"""All commands under one name. Each is imported when it is called, to keep the help fast."""

import importlib
import os
from difflib import get_close_matches
from typing import Final

import click

from ipitrace.base.defects import TRACEBACK_VARIABLE
from ipitrace.base.errors import UsageError
from ipitrace.base.version import VERSION
from ipitrace.host.access import require_descriptors

_COMMANDS: Final = {
    "ab": "Measure two configurations alternately (A B B A ...) and compare them.",
    "compare": "Compare recordings: which is better, and by how much.",
    "doctor": "Check whether this host can measure IPIs, and what to change.",
    "guest": "Install the module for storms in a Linux guest, or show who sends its IPIs.",
    "list": "List the KVM VMs of this host, of any VMM.",
    "report": "Print a recording as 'run' printed it, or one of its IPIs.",
    "run": "Run IPI storms in a guest and print the cost of an IPI.",
    "scenarios": "List the scenarios, and which a guest can run.",
    "watch": "Show the IPIs of running VMs as the host sees them.",
}
"""The name of each command, which is also that of its module and function, and a summary."""
_FUNCTIONS: Final = {"list": "list_vms"}  # a name that Python uses


class _LazyGroup(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"ipitrace.commands.{name}")
        command: click.Command = getattr(module, _FUNCTIONS.get(name, name))
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(name, _COMMANDS, n=1)
            guess = f"Did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"There is no command '{name}'.", f"{guess}Known: {', '.join(_COMMANDS)}."
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--traceback",
    is_flag=True,
    help=f"Print a traceback when ipitrace itself has a defect; so does ${TRACEBACK_VARIABLE}=1.",
)
@click.version_option(VERSION, prog_name="ipitrace")
def ipitrace_group(*, traceback: bool) -> None:
    """Measure what an inter-processor interrupt (IPI) costs on a KVM host."""
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"  # also for the runs that 'ab' starts
    require_descriptors()
