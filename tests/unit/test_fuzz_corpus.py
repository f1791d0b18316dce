# SPDX-License-Identifier: Apache-2.0
"""Every input of the fuzzers' corpus, given to its target: real examples, and what once broke it."""

from pathlib import Path

import pytest
from fuzz.corpus import CORPUS, load, names, seeds

INPUTS = [
    pytest.param(name, path, id=f"{name}/{path.name}") for name in names() for path in seeds(name)
]


@pytest.mark.parametrize(("name", "path"), INPUTS)
def test_the_parser_takes_it_or_says_no(name: str, path: Path) -> None:
    load(name)(path.read_bytes())


def test_every_target_has_examples_and_all_examples_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(names())
    assert all(map(seeds, names()))
