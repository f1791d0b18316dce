# SPDX-License-Identifier: Apache-2.0
"""Every input of the fuzzers' corpus, given to its target: real ones, and what once broke it."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.corpus import CORPUS, load, names, seeds

from ipitrace.base.errors import IpitraceError

MEMORY = 1 << 30
INPUTS = [
    pytest.param(name, path, id=f"{name}/{path.name}") for name in names() for path in seeds(name)
]


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """An input that takes all there is fails, and takes nothing else with it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("name", "path"), INPUTS)
def test_the_parser_takes_it_or_says_no(name: str, path: Path) -> None:
    load(name)(path.read_bytes())


def test_every_target_has_examples_and_all_examples_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(names())
    assert all(map(seeds, names()))


@pytest.mark.parametrize(
    ("name", "path"), [given for given in INPUTS if given.values[1].name == "usual"]
)
def test_a_usual_input_is_refused_nowhere(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a fuzzer that starts from it gets no further than the first refusal."""

    def refused(_error: IpitraceError, message: str, _hint: str) -> None:
        raise AssertionError(message)

    fuzz = load(name)
    monkeypatch.setattr(IpitraceError, "__init__", refused)
    fuzz(path.read_bytes())
