# SPDX-License-Identifier: Apache-2.0
"""All commands under one name, each loaded when it is called: the help must not wait for all."""

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
    "ab": "Measure two configurations in turn (A B B A ...) and compare them.",
    "compare": "Tell whether one recording is better than another, and by how much.",
    "doctor": "Say what speaks against measuring here, and what to do about it.",
    "guest": "Put the storm module into a running guest, or take it out again.",
    "list": "List the KVM VMs of this host, whatever runs them.",
    "report": "Print a recording as 'run' printed it, or one of its IPIs.",
    "run": "Fire IPI storms in a guest and print what each IPI cost.",
    "scenarios": "List the scenarios, and which a guest can run.",
    "watch": "Show the IPIs of running VMs as the host sees them.",
}
"""Each command's name, which is its module's here and its function's there, and its summary."""
_FUNCTIONS: Final = {"list": "list_vms"}  # where the name is Python's


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
    help=f"Should ipitrace itself fail, print where; ${TRACEBACK_VARIABLE}=1 does the same.",
)
@click.version_option(VERSION, prog_name="ipitrace")
def ipitrace_group(*, traceback: bool) -> None:
    """Measure what an inter-processor interrupt (IPI) costs on a KVM host."""
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"  # for the runs that 'ab' starts, too
    require_descriptors()
