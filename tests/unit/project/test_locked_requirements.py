# SPDX-License-Identifier: Apache-2.0
"""requirements/*.txt lock what pyproject.toml asks for, and nothing else may be installed.

Without a network; `script/lock --check` compiles them anew and compares.
"""

import platform
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CHECKOUT = Path(__file__).parents[3]
# What script/setup installs by a file of that name: dependency groups, beside `dependencies`.
LOCKS = {
    "runtime": ["install"],
    "test": ["install", "test"],
    "dev": ["install", "dev"],
    "supply": ["install", "dev", "supply"],
}
PYTHONS = ["3.11", "3.12", "3.13"]


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def members(groups: dict[str, list[Any]], name: str) -> Iterator[str]:
    for member in groups[name]:
        if isinstance(member, str):
            yield member
        else:
            yield from members(groups, member["include-group"])


def asked(lock: str, python: str) -> list[Requirement]:
    whole = project()
    groups = [
        member for name in LOCKS[lock] for member in members(whole["dependency-groups"], name)
    ]
    named = [*whole["build-system"]["requires"], *whole["project"]["dependencies"], *groups]
    requirements = map(Requirement, named)
    environment = environment_of(python)
    return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]


def text_of(lock: str) -> str:
    return (CHECKOUT / f"requirements/{lock}.txt").read_text()


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """What is locked, each with the lines that belong to it."""
    lines = [line for line in text_of(lock).splitlines() if not line.lstrip().startswith("#")]
    found: list[tuple[Requirement, list[str]]] = []
    for line in lines:
        if line.startswith(" "):
            found[-1][1].append(line.strip(" \\"))
        else:
            found.append((Requirement(line.strip(" \\")), []))
    return found


def environment_of(python: str) -> dict[str, str]:
    """What markers are about."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


def locked_version(lock: str, name: str, python: str) -> Version:
    environment = environment_of(python)
    found = [
        entry
        for entry, _hashes in entries(lock)
        if canonicalize_name(entry.name) == canonicalize_name(name)
        and (entry.marker is None or entry.marker.evaluate(environment))
    ]
    assert len(found) == 1, f"{name} for Python {python} in {lock}.txt: run make lock"
    (pin,) = found[0].specifier
    return Version(pin.version)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_is_asked_for_is_locked_in_a_version_that_fits(lock: str, python: str) -> None:
    for requirement in asked(lock, python):
        fits = requirement.specifier.contains(locked_version(lock, requirement.name, python))
        assert fits, (requirement, "run make lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_one_version_with_its_hashes(lock: str) -> None:
    for entry, hashes in entries(lock):
        assert [pin.operator for pin in entry.specifier] == ["=="], entry
        assert hashes, entry
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", line) for line in hashes), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_server_and_no_place_on_a_machine(lock: str) -> None:
    # Where packages come from is the installing machine's own business; the hashes say which.
    assert not re.search(r"://|@ |--(extra-)?index|--find-links|(^|\s)/", text_of(lock))


@pytest.mark.parametrize("lock", ["runtime", "test", "dev"])
def test_the_smaller_sets_are_parts_of_the_largest(lock: str) -> None:
    largest = [(entry.name, entry.specifier, hashes) for entry, hashes in entries("supply")]
    for entry, hashes in entries(lock):
        assert (entry.name, entry.specifier, hashes) in largest


def test_what_is_locked_is_what_runs_here() -> None:
    python = ".".join(platform.python_version_tuple()[:2])
    for requirement in asked("test", python):
        assert Version(version(requirement.name)) == locked_version(
            "test", requirement.name, python
        )


def test_script_setup_takes_each_lock_that_there_is() -> None:
    script = (CHECKOUT / "script/setup").read_text()
    taken = cast("list[str]", re.findall(r"lock='?(\w+)'? ;;", script))
    assert set(taken) == set(LOCKS)
    assert {path.stem for path in (CHECKOUT / "requirements").iterdir()} == set(LOCKS)
