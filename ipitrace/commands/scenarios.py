# SPDX-License-Identifier: Apache-2.0
"""`ipitrace scenarios`: list what can be measured."""

import click

from ipitrace.base.console import output_width
from ipitrace.base.foreign import plain_values
from ipitrace.commands.formats import format_options, print_document
from ipitrace.measure.guests import MICRO, why_not
from ipitrace.render.formats import OFFERS
from ipitrace.render.scenarios import Offer
from ipitrace.storm.transport.registry import FORMS
from ipitrace.words.scenarios import SCENARIOS


@click.command()
@click.option(
    "--vm",
    default=MICRO,
    show_default=True,
    metavar="VM",
    help="The guest, as for 'ipitrace run'.",
)
@click.option(
    "--via", metavar="URL", help=f"The transport to the guest: {FORMS}. Default: the guest agent."
)
@format_options(OFFERS)
def scenarios(*, vm: str, via: str | None, output_format: str) -> None:
    """List the scenarios, and the reason for each that the guest cannot run.

    ipitrace connects to a Linux guest; ipitrace_storm must be loaded there, see 'ipitrace guest'.
    The built-in guest (micro) needs nothing.
    """
    reasons = plain_values(why_not(vm, via, SCENARIOS))
    offers = [Offer(scenario, reasons.get(scenario.name)) for scenario in SCENARIOS]
    print_document(OFFERS.render(output_format, offers, width=output_width()), output_format)
