# SPDX-License-Identifier: Apache-2.0
"""`ipitrace guest`: what ipitrace does in a running guest besides storms."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ipitrace.base.console import output_width, say
from ipitrace.base.foreign import plain, plain_values
from ipitrace.commands.formats import format_options, print_document
from ipitrace.measure.guests import open_way
from ipitrace.render.formats import SENDERS
from ipitrace.render.grid import fill
from ipitrace.render.progress import Steps
from ipitrace.senders.counting import count_senders
from ipitrace.storm.linux.helper import MODULE, HelperStatus, find_helper, read_status
from ipitrace.storm.linux.install import install, remove
from ipitrace.storm.transport.registry import FORMS

_LEAST_S: Final = 1
_MOST_S: Final = 600
_DEFAULT_S: Final = 10.0


@click.group()
def guest() -> None:
    """Install the module for storms in a running Linux guest, or show who sends its IPIs.

    Storms in a Linux guest need a kernel module and a helper program in the guest; 'senders' needs
    neither.
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


def _a_number(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """The value; every comparison of NaN with a limit is false."""
    if math.isnan(value):
        raise click.BadParameter("it is not a number.")
    return value


@guest.command("senders", short_help="Count which functions of its kernel send IPIs.")
@_which
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(_LEAST_S, _MOST_S),
    callback=_a_number,
    default=_DEFAULT_S,
    show_default=True,
    metavar="SECONDS",
    help=f"How long to count: {_LEAST_S} to {_MOST_S} s.",
)
@format_options(SENDERS)
def senders_command(*, vm: str, via: str | None, duration_s: float, output_format: str) -> None:
    """Count which functions of the guest's kernel send IPIs, and for what.

    The guest's kernel counts, in a tracefs instance that is removed again. It needs Linux 6.4 or
    later. Nothing needs to be installed.
    """
    with open_way(vm, via) as shell:
        senders = count_senders(shell, duration_s)
    print_document(SENDERS.render(output_format, senders, width=output_width()), output_format)


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
