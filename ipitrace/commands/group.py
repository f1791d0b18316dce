# SPDX-License-Identifier: Apache-2.0
"""All commands under one name."""

import os

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
from ipitrace.defects import TRACEBACK_VARIABLE
from ipitrace.host.access import require_descriptors


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--traceback",
    is_flag=True,
    help=f"Should ipitrace itself fail, print where; ${TRACEBACK_VARIABLE}=1 does the same.",
)
@click.version_option(ipitrace.__version__, prog_name="ipitrace")
def ipitrace_group(*, traceback: bool) -> None:
    """Measure what an inter-processor interrupt (IPI) costs on a KVM host."""
    if traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"  # for the runs that 'ab' starts, too
    require_descriptors()


ipitrace_group.add_command(run)
ipitrace_group.add_command(report)
ipitrace_group.add_command(compare)
ipitrace_group.add_command(ab)
ipitrace_group.add_command(scenarios)
ipitrace_group.add_command(list_vms)
ipitrace_group.add_command(doctor)
ipitrace_group.add_command(watch)
ipitrace_group.add_command(guest)
