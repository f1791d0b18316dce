# SPDX-License-Identifier: Apache-2.0
"""Figures published by others, from anchors.toml: for display, never used in calculations."""

import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Anchor:
    """One published figure.

    Attributes:
        what: what was measured, in the words of the publication.
        figures: as published, with their unit; "a -> b" is before and after a change.
        setup: the hardware and software, as far as the publication states them.
        seen: the figure was read in the source itself; otherwise it is second-hand.
    """

    source: str
    what: str
    figures: str
    setup: str
    seen: bool


def read_anchors() -> tuple[Anchor, ...]:
    """All published figures, in the order of the file."""
    text = resources.files("ipitrace.compare").joinpath("anchors.toml").read_text("utf-8")
    return tuple(Anchor(**entry) for entry in tomllib.loads(text)["anchor"])
