# SPDX-License-Identifier: Apache-2.0
"""README's first screen is what `ipitrace report --example` prints."""

from pathlib import Path

from click.testing import CliRunner

from ipitrace.commands.report import report

README = Path(__file__).parents[3] / "README.md"
FIRST_SCREEN = 45  # lines


def test_the_first_screen_is_real() -> None:
    lines = README.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    host   "))
    assert start < FIRST_SCREEN / 3
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("    "))
    shown = [line[4:] for line in lines[start:end]]
    printed = CliRunner().invoke(report, ["--example"]).stdout
    for part in "\n".join(shown).split("\n...\n"):
        assert part in printed
