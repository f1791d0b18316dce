# SPDX-License-Identifier: Apache-2.0
"""The targets, and their inputs under tests/data/fuzz."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
LONGEST_INPUT_BYTES = 64 << 10
"""What engines make; inputs of the corpus may be as long."""

Fuzz = Callable[[bytes], None]


def names() -> tuple[str, ...]:
    """Every target, sorted."""
    modules = (Path(__file__).parent / "targets").glob("[!_]*.py")
    return tuple(sorted(path.stem for path in modules))


def load(name: str) -> Fuzz:
    """A target's function."""
    module = importlib.import_module(f".targets.{name}", __package__)
    return cast("Fuzz", module.fuzz)


def seeds(name: str) -> tuple[Path, ...]:
    """A target's inputs: real examples, and what once broke it."""
    return tuple(sorted(path for path in (CORPUS / name).glob("*") if path.is_file()))
