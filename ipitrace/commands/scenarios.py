# SPDX-License-Identifier: Apache-2.0
"""`ipitrace scenarios`: what can be measured."""

import click

from ipitrace.console import output_width, say
from ipitrace.render.tables import render_scenarios
from ipitrace.storm.micro.driver import unsupported
from ipitrace.storm.scenarios import DEFAULT_SCENARIOS, SCENARIOS


@click.command(short_help="List the scenarios, and which the micro-guest can run.")
def scenarios() -> None:
    """List the scenarios, and which the micro-guest can run."""
    rows = [(scenario, unsupported(scenario)) for scenario in SCENARIOS]
    say(render_scenarios(rows, DEFAULT_SCENARIOS, output_width()))
