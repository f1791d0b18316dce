# SPDX-License-Identifier: Apache-2.0
"""`ipitrace guest`: install the storm module in a running guest, check it, remove it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ipitrace.base.console import output_width, say
from ipitrace.base.foreign import plain, plain_values
from ipitrace.measure.guests import open_way
from ipitrace.render.grid import fill
from ipitrace.render.progress import Steps
from ipitrace.storm.linux.helper import MODULE, HelperStatus, find_helper, read_status
from ipitrace.storm.linux.install import install, remove
from ipitrace.storm.transport.registry import FORMS


@click.group()
def guest() -> None:
    """Install the module for storms in a running Linux guest, check it, or remove it.

    Storms in a Linux guest need a kernel module and a helper program in the guest.
    """


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    """The two options that every subcommand has."""
    vm = click.option(
        "--vm", required=True, metavar="VM", help="The VM's name, or local for this machine itself."
    )
    via = click.option(
        "--via",
        metavar="URL",
        help=f"The transport to the guest: {FORMS}. Default: the guest agent.",
    )
    return vm(via(command))


@guest.command("install", short_help="Copy, build and load the module.")
@_which
@click.option(
    "--module",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help=f"An {MODULE}.ko built elsewhere for the kernel of the guest; nothing is built there.",
)
def install_command(*, vm: str, via: str | None, module: Path | None) -> None:
    """Copy the sources of the module and the helper into the guest, build and load them.

    The guest needs make, gcc and the headers of its kernel, or --module. Everything goes to
    /var/lib/ipitrace. Steps that are done already are not repeated. Progress is printed on
    standard error.
    """
    steps = Steps()
    with contextlib.ExitStack() as stack:
        with steps.step(f"connecting to {vm}"):
            shell = stack.enter_context(open_way(vm, via))
        status = install(shell, _say_line, steps.step, module)
    _tell_status(status)


@guest.command("status", short_help="Print what is installed, and what it can run.")
@_which
def status_command(*, vm: str, via: str | None) -> None:
    """Print what is installed in the guest, and which scenarios it cannot run."""
    with open_way(vm, via) as shell:
        _tell_status(read_status(shell, find_helper(shell)))


@guest.command("remove", short_help="Unload the module, and remove all installed files.")
@_which
def remove_command(*, vm: str, via: str | None) -> None:
    """Unload the module and remove all files that install put there, in any version."""
    with open_way(vm, via) as shell:
        remove(shell, _say_line)


def _say_line(text: str) -> None:
    say(plain(text, 1000))


def _tell_status(status: HelperStatus) -> None:
    say(status_text(status, output_width()))


def status_text(status: HelperStatus, width: int) -> str:
    """What is installed in the guest, as text of `width` columns."""
    status = plain_values(status)
    module = status.module
    version = f"{module.version}, srcversion {module.srcversion}" if module.loaded else "not loaded"
    lines = [
        ("module", version),
        ("helper", f"{status.helper_version}, storm interface {status.abi_version}"),
    ]
    online = ", ".join(map(str, status.online))
    lines.append(("guest", f"Linux {status.kernel}, CPUs {online} online of {status.n_cpus}"))
    if status.apic_mode is not None:
        khz = f"{status.tsc_khz / 1000:.3f} MHz" if status.tsc_khz else "of unknown rate"
        lines.append(("", f"APICs in {status.apic_mode} mode, TSC {khz}"))
    lines += [("cannot", f"{name}: {reason}") for name, reason in status.unsupported.items()]
    return "\n".join(fill(text, width, f"{label:<9}") for label, text in lines)
