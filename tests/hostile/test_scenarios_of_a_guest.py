# SPDX-License-Identifier: Apache-2.0
"""Which scenarios a Linux guest can run: `ipitrace scenarios` asks it, and `run` names them."""

import json
from collections.abc import Callable, Mapping, Sequence

import harness
import pytest
import test_agent_guest
import test_ssh_guest
from harness import Outcome, assert_harmless

from ipitrace.base.errors import ExitCode
from ipitrace.words.scenarios import MICRO_GUEST_ONLY, SCENARIOS

XAPIC = {"apic_mode": "xapic", "unsupported": {"x2apic": "the APICs are in xAPIC mode"}}
ABLE = {
    s.name for s in SCENARIOS if s.name.endswith("-xapic") and s.pattern not in MICRO_GUEST_ONLY
}


def by_agent(words: Sequence[str], status: Mapping[str, object]) -> Outcome:
    said = json.dumps({**harness.STATUS, **status}).encode()
    return test_agent_guest.play(
        test_agent_guest.Mode("asked", words=words, files={"status": said})
    )


def by_ssh(words: Sequence[str], status: Mapping[str, object]) -> Outcome:
    return test_ssh_guest.play(
        test_ssh_guest.said(
            "asked",
            "status",
            json.dumps({**harness.STATUS, **status}),
            words=(*words, "--vm", "hostile"),
        )
    )


def runs(table: str) -> dict[str, tuple[str, str]]:
    """From a scenario's name to whether it runs, and the rest of its line."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in table.splitlines()[2:]:
        if line.startswith(" "):  # what was wrapped goes on
            found[name] = (found[name][0], f"{found[name][1]} {line.strip()}")
        else:
            name, able, about = line.split(maxsplit=2)
            found[name] = (able, about)
    return found


@pytest.mark.parametrize("way", [by_agent, by_ssh])
def test_a_guest_is_asked(way: Callable[..., Outcome]) -> None:
    done = way(("scenarios",), XAPIC)
    assert_harmless(done, frozenset({ExitCode.OK}))
    said = runs(done.stdout)
    assert said.keys() == {s.name for s in SCENARIOS}
    assert {name for name, (able, _) in said.items() if able == "yes"} >= ABLE
    able, about = said["unicast-running"]
    assert (able, about.endswith("(the APICs are in xAPIC mode)")) == ("no", True)
    assert said["ring"][0] == "no"


@pytest.mark.parametrize("way", [by_agent, by_ssh])
def test_run_names_those_that_can(way: Callable[..., Outcome]) -> None:
    words = ("run", "--no-trace", "--scenario", "unicast-running", "-o", "recording")
    done = way(words, XAPIC)
    assert_harmless(done, frozenset({ExitCode.ENVIRONMENT}))
    first, second = done.stderr.splitlines()
    assert first == (
        "ipitrace: The scenario 'unicast-running' cannot run here: the APICs are in xAPIC mode."
    )
    told = second.partition("These scenarios can run: ")[2].partition(".")[0].split(", ")
    assert set(told) >= ABLE
    assert "unicast-running" not in told
    assert "'ipitrace scenarios' with the same --vm and --via" in second


def test_a_guest_without_the_module_is_told_what_it_lacks() -> None:
    done = by_agent(("scenarios",), {"module": {"loaded": False}})
    assert_harmless(done, frozenset({ExitCode.ENVIRONMENT}))
    assert "ipitrace guest install" in done.stderr
