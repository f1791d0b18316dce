# SPDX-License-Identifier: Apache-2.0
"""`ipitrace list`: the VMs of this host."""

import click

from ipitrace.base.console import output_width
from ipitrace.commands.formats import format_options, print_document
from ipitrace.render.formats import VMS
from ipitrace.vm import discover


@click.command("list")
@format_options(VMS)
def list_vms(*, output_format: str) -> None:
    """List the KVM VMs of this host, their vCPU threads and the CPUs that these may run on.

    --vm of other commands accepts each name, and pid:N. Without root, only the VMs of the user
    are found.
    """
    print_document(VMS.render(output_format, discover(), width=output_width()), output_format)
