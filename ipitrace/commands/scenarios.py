# SPDX-License-Identifier: Apache-2.0
"""`ipitrace scenarios`: what can be measured."""

import click

from ipitrace.base.console import (
    output_width,
    say,
)
from ipitrace.base.foreign import plain_values
from ipitrace.measure.guests import (
    MICRO,
    why_not,
)
from ipitrace.render.run.tables import render_scenarios
from ipitrace.storm.transport.registry import FORMS
from ipitrace.words.scenarios import (
    DEFAULT_SCENARIOS,
    SCENARIOS,
)


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
