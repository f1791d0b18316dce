# SPDX-License-Identifier: Apache-2.0
"""`ipitrace scenarios`: what can be measured."""

import click

from ipitrace.console import output_width, say
from ipitrace.foreign import plain_values
from ipitrace.guests import MICRO, why_not
from ipitrace.render.tables import render_scenarios
from ipitrace.storm.scenarios import DEFAULT_SCENARIOS, SCENARIOS
from ipitrace.storm.via import FORMS


@click.command()
@click.option(
    "--vm",
    default=MICRO,
    show_default=True,
    metavar="VM",
    help="The guest that is asked, as of 'ipitrace run'.",
)
@click.option(
    "--via", metavar="URL", help=f"The way into it: {FORMS}; its guest agent unless given."
)
def scenarios(*, vm: str, via: str | None) -> None:
    """List the scenarios, and for those that a guest cannot run, why.

    A Linux guest is connected to and asked; ipitrace_storm must be loaded there, see
    'ipitrace guest'. The built-in guest (micro) needs nothing.
    """
    reasons = plain_values(why_not(vm, via, SCENARIOS))
    rows = [(scenario, reasons.get(scenario.name)) for scenario in SCENARIOS]
    say(render_scenarios(rows, DEFAULT_SCENARIOS, output_width()))
