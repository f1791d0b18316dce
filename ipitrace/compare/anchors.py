# SPDX-License-Identifier: Apache-2.0
"""Figures others published, from anchors.toml: to look at, never to calculate with."""

import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Anchor:
    """One published figure.

    Attributes:
        what: what was measured, in the publisher's words.
        figures: as published, with their unit; "a -> b" is before and after a change.
        setup: on what, as far as it was stated.
        seen: read in the source itself; else second-hand.
    """

    source: str
    what: str
    figures: str
    setup: str
    seen: bool


def read_anchors() -> tuple[Anchor, ...]:
    """All of them, in the file's order."""
    text = resources.files("ipitrace.compare").joinpath("anchors.toml").read_text("utf-8")
    return tuple(Anchor(**entry) for entry in tomllib.loads(text)["anchor"])
