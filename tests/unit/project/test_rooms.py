# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING shows the package's folders as the import contract and their docstrings do."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
PACKAGE = CHECKOUT / "ipitrace"


def layers() -> list[str]:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    whole = [c for c in contracts if c.get("containers") == ["ipitrace"]]
    assert len(whole) == 1
    assert whole[0]["exhaustive"]
    return list(whole[0]["layers"])


def picture() -> Iterator[str]:
    """One row for each layer; who is in a row may import what is in the rows below."""
    for layer in layers():
        for i, room in enumerate(layer.split(" | ")):
            place = PACKAGE / room
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            about = ast.get_docstring(ast.parse(file.read_text())) or ""
            beside = "" if i == 0 else "| "
            yield f"    {beside + room:<12} {about.splitlines()[0]}"


def test_nothing_else_is_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


def test_contributing_shows_the_contract() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    shown = "\n".join(picture())
    assert shown in text, f"Put this into CONTRIBUTING.md:\n{shown}"
