# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md names every command, and no file that is not there."""

import re
from pathlib import Path

import click
import pytest

from ipitrace.commands.group import ipitrace_group

CHECKOUT = Path(__file__).parents[3]
TEXT = (CHECKOUT / "SECURITY.md").read_text()


@pytest.mark.parametrize("command", ipitrace_group.list_commands(click.Context(ipitrace_group)))
def test_what_each_command_reads_is_told(command: str) -> None:
    table = TEXT.partition("## What each command reads")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert any(f"`{command}" in cell for cell in first_cells)


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"(?:ipitrace|docs|guest-tools|tests)/[\w./-]*\w", TEXT)))
)
def test_what_it_names_is_there(name: str) -> None:
    assert (CHECKOUT / name).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`", TEXT))))
def test_the_targets_it_names_are_there(target: str) -> None:
    assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
