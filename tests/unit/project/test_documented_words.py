# SPDX-License-Identifier: Apache-2.0
"""Tables of the documents that list the package's words list all of them, and no others.

Tables are found by the words in their header, so that the prose may change.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipitrace.recording import writer
from ipitrace.storm.transport.registry import TRANSPORTS
from ipitrace.tracer.events import EVENTS
from ipitrace.words.disturbances import DisturbanceKind
from ipitrace.words.events import HOST_EVENTS
from ipitrace.words.paths import PATH_RANKS, IpiPath
from ipitrace.words.scenarios import MICRO_GUEST_ONLY, SCENARIOS, Pattern, SendMethod, TargetState
from ipitrace.words.stages import STAGES

CHECKOUT = Path(__file__).parents[3]
DOCS = sorted([CHECKOUT / "README.md", *CHECKOUT.glob("docs/*.md")])
PATHS = [path.text for path in IpiPath]
UNSEEN_BY_WATCH = {
    path.text
    for path in (
        IpiPath.MSR_FASTPATH,
        IpiPath.EXITLESS,
        IpiPath.AVIC_INVALID_PAGE,
        IpiPath.AVIC_INVALID_VECTOR,
    )
}
NOT_TOLD = ("not distinguished", "leaves no trace", "a send without an IPI")
TRACEPOINTS = {event.name for event in EVENTS if not event.symbol}
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def first_names(self) -> list[str]:
        """What the first column has in code."""
        return [name for row in self.rows for name in CODE.findall(row[0])]


def cells(line: str) -> tuple[str, ...]:
    return tuple(LINK.sub(r"\1", cell).strip() for cell in line.strip().strip("|").split("|"))


def tables(text: str) -> list[Table]:
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    found = [[cells(line) for line in block.splitlines()] for block in blocks]
    return [Table(rows[0], tuple(rows[2:])) for rows in found]


def table(page: str, *header: str) -> Table:
    """The one table of the page whose header's cells begin with these words."""
    found = [
        each
        for each in tables((CHECKOUT / "docs" / page).read_text())
        if len(each.header) >= len(header)
        and all(cell.startswith(word) for cell, word in zip(each.header, header, strict=False))
    ]
    assert len(found) == 1, f"{page} has {len(found)} tables with {header}"
    return found[0]


def test_paths_and_their_evidence() -> None:
    assert table("paths.md", "path", "meaning").first_names() == PATHS  # test_paths.py has more


def test_paths_that_watch_can_tell() -> None:
    paths = table("paths.md", "path", "meaning")
    by_watch = paths.header.index("evidence in `watch`")
    told = [row[by_watch].startswith(NOT_TOLD) for row in paths.rows]
    unseen = {path for path, no in zip(PATHS, told, strict=True) if no}
    assert unseen == UNSEEN_BY_WATCH


def test_ranks_of_paths() -> None:
    ranks = {
        name: int(rank)
        for rank, paths, *_ in table("statistics.md", "rank", "path").rows
        for name in CODE.findall(paths)
    }
    assert ranks == PATH_RANKS


def test_kinds_of_disturbances() -> None:
    assert table("measuring.md", "kind", "what").first_names() == [*DisturbanceKind]


def test_how_a_linux_guest_sends() -> None:
    names = table("ipitrace_storm.md", "method").first_names()
    assert set(names) == set(SendMethod) - MICRO_GUEST_ONLY
    assert len(names) == len(set(names))


def test_words_of_scenarios_in_a_linux_guest() -> None:
    names = set(table("ipitrace_storm.md", "word").first_names())
    states = set(TargetState) - MICRO_GUEST_ONLY
    assert names >= states
    assert names <= states | set(Pattern)


def test_transports() -> None:
    names = table("guests.md", "`--via`", "connection").first_names()
    assert [name for name in names if "://" in name] == [
        known.form for known in TRANSPORTS if known.scheme
    ]


def test_files_of_a_recording() -> None:
    names = table("recording.md", "file").first_names()
    assert set(names) == writer._OURS
    assert len(names) == len(set(names))


def test_keys_of_a_table_file() -> None:
    source = Path(writer.__file__).read_text()
    written = re.findall(r'^ +"(ipitrace\.[a-z_.]+)": ', source, re.MULTILINE)
    assert table("recording.md", "key").first_names() == written


def test_events_that_kernels_lack_are_events() -> None:
    names = {name for what in differences().values() for name in CODE.findall(what) if "_" in name}
    assert len(names) > 5
    assert names <= {event.name for event in HOST_EVENTS}


def test_hooks_of_kernels_differ_by_the_tracepoints_that_they_lack() -> None:
    hooks = {
        ".".join(kernel.split(".")[:2]): int(n)
        for kernel, _suite, n, *_ in table("kernels.md", "kernel", "suite", "hooks").rows
    }
    lacking = {
        version: TRACEPOINTS & set(CODE.findall(what))
        for versions, what in differences().items()
        for version in versions.split(", ")
    }
    assert hooks.keys() == lacking.keys()
    assert not lacking["6.12"]
    for version in ("6.1", "5.10"):
        assert hooks["6.12"] - hooks[version] == len(lacking[version]), version
    assert all(n <= len(HOST_EVENTS) for n in hooks.values())


def differences() -> dict[str, str]:
    """What each kernel lacks, of docs/kernels.md."""
    found = [t for t in tables((CHECKOUT / "docs/kernels.md").read_text()) if len(t.header) == 2]
    assert len(found) == 1
    return {row[0]: row[1] for row in found[0].rows}


def test_counts_of_programs_in_the_readme() -> None:
    text = (CHECKOUT / "README.md").read_text()
    hooked = re.findall(
        r"(\d+) (?:BPF )?programs\s+on\s+tracepoints(\s+and\s+kernel\s+functions)?", text
    )
    assert hooked
    for n, functions in hooked:
        assert int(n) == len(HOST_EVENTS if functions else TRACEPOINTS)
    loaded = [int(n) for n in re.findall(r"loading (\d+) programs", text)]
    assert loaded
    assert all(n <= len(HOST_EVENTS) for n in loaded)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_columns_of_scenarios_and_paths_name_such(page: Path) -> None:
    names = {scenario.name for scenario in SCENARIOS}
    for each in tables(page.read_text()):
        for column, title in enumerate(each.header):
            values = [row[column] for row in each.rows]
            if title in {"path", "paths"}:
                known = PATHS
                used = [name for value in values for name in CODE.findall(value)]
            elif re.match(r"scenario\b", title) and column == 0:
                known = [*names]
                used = [re.split(r"[,` ]", value.strip("`"))[0] for value in values]
            else:
                continue
            assert set(used) <= {*known}, (page.name, each.header)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_stages_that_are_named_exist(page: Path) -> None:
    text = LINK.sub(r"\1", page.read_text())
    named = re.findall(r"\bstages? `(\w+)`", text)
    assert set(named) <= {spec.name for spec in STAGES}
