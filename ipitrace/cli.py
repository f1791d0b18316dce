# SPDX-License-Identifier: Apache-2.0
"""The command line; the one place where errors become text and exit codes."""

import sys

import click

import ipitrace
from ipitrace.commands.ab import ab
from ipitrace.commands.compare import compare
from ipitrace.commands.doctor import doctor
from ipitrace.commands.guest import guest
from ipitrace.commands.list import list_vms
from ipitrace.commands.report import report
from ipitrace.commands.run import run
from ipitrace.commands.scenarios import scenarios
from ipitrace.commands.watch import watch
from ipitrace.errors import ExitCode, IpitraceError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ipitrace.__version__, prog_name="ipitrace")
def ipitrace_group() -> None:
    """Measure what an inter-processor interrupt (IPI) costs on a KVM host."""


ipitrace_group.add_command(run)
ipitrace_group.add_command(report)
ipitrace_group.add_command(compare)
ipitrace_group.add_command(ab)
ipitrace_group.add_command(scenarios)
ipitrace_group.add_command(list_vms)
ipitrace_group.add_command(doctor)
ipitrace_group.add_command(watch)
ipitrace_group.add_command(guest)


def main() -> None:
    """Run the command line and exit as errors.ExitCode says."""
    try:
        code = ipitrace_group.main(prog_name="ipitrace", standalone_mode=False)
    except IpitraceError as error:
        _tell(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "ipitrace"
        _tell(error.format_message(), f"See '{where} --help'.")
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        _tell("Interrupted.", "Nothing was measured yet.")
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit:
        # click's way of saying that the reader of our output left, and its only one: it
        # asks for code 1, which means a regression here
        sys.exit(ExitCode.OK)
    sys.exit(code or ExitCode.OK)


def _tell(message: str, hint: str) -> None:
    click.echo(f"ipitrace: {_sentence(message)}", err=True)
    if hint:
        click.echo(f"          {_sentence(hint)}", err=True)


def _sentence(text: str) -> str:
    """With a capital and an end; what the user typed, and names, stay as they are."""
    text = text.strip()
    first = text.partition(" ")[0]
    if first.isalpha() and first.islower() and first not in sys.argv:
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!", ":")) else f"{text}."
