# SPDX-License-Identifier: Apache-2.0
"""The table of scenarios, and which of them a guest can run, in each format."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.render.csv import csv_text
from ipitrace.render.page import MarkdownPage, Page, Table, TextPage, document
from ipitrace.words.scenarios import DEFAULT_SCENARIOS, Scenario


@dataclass(frozen=True)
class Offer:
    """One scenario, and whether a guest can run it.

    Attributes:
        why_not: why the guest cannot run it; None when it can.
    """

    scenario: Scenario
    why_not: str | None

    @property
    def default(self) -> bool:
        """Whether `run` runs it when no scenario is named."""
        return self.scenario.name in DEFAULT_SCENARIOS


def render_scenarios(offers: Sequence[Offer], width: int = PIPE_WIDTH) -> str:
    """The table as text of `width` columns."""
    return _render(offers, TextPage(width))


def render_scenarios_markdown(offers: Sequence[Offer]) -> str:
    """The table as Markdown."""
    return _render(offers, MarkdownPage())


def render_scenarios_json(offers: Sequence[Offer]) -> str:
    """The table as one JSON document."""
    found = [
        {
            "name": offer.scenario.name,
            "pattern": offer.scenario.pattern,
            "target_state": offer.scenario.target_state,
            "send_method": offer.scenario.send_method,
            "about": offer.scenario.about,
            "default": offer.default,
            "can_run": offer.why_not is None,
            "why_not": offer.why_not,
        }
        for offer in offers
    ]
    return json.dumps({"scenarios": found}, indent=2) + "\n"


def render_scenarios_csv(offers: Sequence[Offer]) -> str:
    """One row for each scenario."""
    columns = ("scenario", "runs", "about", "why_not")
    rows = [
        (offer.scenario.name, _runs(offer), offer.scenario.about, offer.why_not or "")
        for offer in offers
    ]
    return csv_text(columns, (dict(zip(columns, row, strict=True)) for row in rows))


def _render(offers: Sequence[Offer], page: Page) -> str:
    rows = [
        (
            offer.scenario.name,
            _runs(offer),
            offer.scenario.about + (f" ({offer.why_not})" if offer.why_not is not None else ""),
        )
        for offer in plain_values(list(offers))
    ]
    headers = ("scenario", "runs", "about")
    return document([page.table("", Table(headers, rows, text=(0, 1, 2)))])


def _runs(offer: Offer) -> str:
    if offer.why_not is not None:
        return "no"
    return "default" if offer.default else "yes"
