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
    """List the KVM VMs of this host, their vCPU threads and the CPUs these may run on.

    Each name, and pid:N, is what --vm takes. Without root, only one's own VMs are seen.
    """
    print_document(VMS.render(output_format, discover(), width=output_width()), output_format)
