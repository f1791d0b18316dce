# SPDX-License-Identifier: Apache-2.0
"""`ipitrace list`: the VMs of this host."""

import json

import click

from ipitrace.base.console import (
    output_width,
    say,
    say_json,
)
from ipitrace.render.list import render_list
from ipitrace.vm import discover


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def list_vms(*, as_json: bool) -> None:
    """List the KVM VMs of this host, their vCPU threads and the CPUs these may run on.

    Each name, and pid:N, is what --vm takes. Without root, only one's own VMs are seen.
    """
    found = discover()
    if as_json:
        say_json(json.dumps(found.to_dict(), indent=2), end="\n")
    else:
        say(render_list(found, output_width()), end="")
