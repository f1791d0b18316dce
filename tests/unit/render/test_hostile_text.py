# SPDX-License-Identifier: Apache-2.0
"""Every renderer, with hostile text in every string that can be a stranger's."""

import contextlib
import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from comparisons import held_against, steady
from hostile import SAMPLES, assert_harmless, hostile_text, poisoned
from hypothesis import HealthCheck, example, given, settings
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from runs import made_run

from ipitrace.base.console import unstyled
from ipitrace.base.foreign import plain
from ipitrace.commands.guest import _say_line, _tell_status
from ipitrace.compare.model import Comparison, GateKind, GateResult, GateState
from ipitrace.doctor.model import Check, Examination
from ipitrace.recording.host import KvmProcess, NeighboursResult
from ipitrace.recording.result import RunResult
from ipitrace.render.compare.csv import render_csv
from ipitrace.render.compare.junit import render_junit
from ipitrace.render.compare.openmetrics import render_openmetrics
from ipitrace.render.compare.tables import render_comparison
from ipitrace.render.doctor import render_examination
from ipitrace.render.list import render_list
from ipitrace.render.markdown import markdown
from ipitrace.render.progress import ProgressBar
from ipitrace.render.run.brief import render_brief
from ipitrace.render.run.tables import render_run
from ipitrace.render.run.timeline import Timeline, render_timeline
from ipitrace.render.watch.openmetrics import render_openmetrics as render_watch_openmetrics
from ipitrace.render.watch.text import render_interval
from ipitrace.storm.limits import STATUS_CHARS
from ipitrace.storm.linux.helper import HelperStatus, Module
from ipitrace.vm import Discovery, Vcpu, VirtualMachine
from ipitrace.watch.model import (
    Count,
    CpuPosts,
    ExitsOfReason,
    IpiKind,
    LatePosts,
    Other,
    OwnCost,
    PairsLeftOut,
    VcpuCounts,
    VcpuPair,
    Visibility,
    VmExits,
    VmInterval,
    WatchInterval,
)

# Words that decide what is shown at all, and times that a renderer reads.
SPARED = frozenset(
    [
        *("measured", "unsupported", "micro", "native", "linux", "relative", "absolute", "cycles"),
        *("kind", "n_vcpus", "pinned_cpus", "payload_sha256", "one_line", "fingerprint"),
        *("neighbours", "kvm_processes", "pinning", "overcommitted", "why", "name", "pid"),
        *("kernel_release", "2024-01-02T03:04:05+00:00"),
        *("send", "deliver", "round_trip", "ok", "warn", "missing", "unknown", "p50", "p90"),
        *("off", "counting", "full", "kvm_exit", "send_cycles", "emulated"),
    ]
)
NONE = Count(0, 0)
VM = VirtualMachine(
    pid=700,
    name="web",
    aliases=("web",),
    vmm="unknown VMM (x)",
    vcpus=(Vcpu(0, 801, (0, 1), "kvm_entry", 5), Vcpu(1, None, (), None, 6)),
    memory_bytes=None,
    started_at_ticks=1,
    apic_mode=None,
    backend="kvm_amd",
    vm_fd=11,
    creator_tid=700,
    unknown={"memory_bytes": "its command line does not say", "tid": "it has not run yet"},
)
WATCHED = VmInterval(
    name="guest1",
    pid=4711,
    vcpus=(VcpuCounts(0, NONE, NONE, NONE),),
    visibility=Visibility(complete=None, why="nothing tells"),
    sends=NONE,
    ipis=Count(5, 9),
    pairs=(VcpuPair(0, 1, 0xFD, "fixed", "msr-exit", Count(5, 9)),),
    pairs_left_out=PairsLeftOut(0, NONE),
    kinds=(IpiKind(0xFD, "fixed", "msr-exit", Count(5, 9)),),
    exits=VmExits("kvm_stat", (ExitsOfReason("halt_exits", Count(6, 9)),), None),
    wakeups=NONE,
    waited=NONE,
    others=(Other(0xEC, "fixed", Count(2, 9)),),
    unplaced=NONE,
    missed=NONE,
    events=NONE,
    cpus=(0,),
    watched_s=7.0,
    unwatched=(),
)
INTERVAL = WatchInterval(
    schema_version=1,
    number=3,
    time="2024-01-02T03:04:05+00:00",
    duration_s=2.0,
    elapsed_s=8.0,
    vms=(WATCHED, replace(WATCHED, pid=4712, exits=VmExits(None, None, "not counted"))),
    late_posts=LatePosts(
        {"PIN": 7}, (CpuPosts(3, {"PIN": 7}, ("guest1",), ("guest1",)),), {"PIN": {3: 7}}, None
    ),
    own=OwnCost(0.0123, 200 << 20),
    recursion_misses=0,
    ended=("guest2 has ended",),
    departed=0,
    stopped=None,
)
EXAMINATION = Examination(
    (Check("bpf", "ok", "it works"), Check("kvm", "warn", "so and so", "do that")), VM
)
TIMELINE = Timeline(
    span={
        "ipi": 3,
        "scenario": "ring",
        "repetition": 1,
        "seq": 2,
        "sender": 0,
        "target": 1,
        "path": "msr-exit",
        "send_tsc": 10,
        "kvm_exit_tsc": 12,
        "handler_tsc": 20,
    },
    before=None,
    after={"ipi": 4, "target": 1, "send_tsc": 90, "path": "exitless"},
    events=(
        *({"kind": "other", "vcpu": 0, "cpu": 1, "tsc": 12, "arg": 1, "word": 2, "detail": 3},),
        *({"kind": "kvm_eoi", "vcpu": 5, "cpu": 1, "tsc": 13, "arg": 1, "word": 2, "detail": 3},),
    ),
)


def a_run() -> RunResult:
    run = made_run(untrustworthy=("a doubt",), complete=False, failure="Interrupted.")
    around = NeighboursResult(kvm_processes=(KvmProcess(7, "other"),))
    return replace(run, host=replace(run.host, neighbours=around))


def a_comparison() -> Comparison:
    comparison = held_against(steady(), steady(factor=1.2))
    row = comparison.rows[0]
    about = (row.scenario, row.metric, 0.01, GateState.BROKEN, "so")
    gates = (GateResult("deliver.p50:+5%", kind, *about) for kind in GateKind)
    return replace(comparison, gates=tuple(gates))


RUN, COMPARISON = a_run(), a_comparison()
TERMINAL: Mapping[str, Callable[[str], str]] = {
    "first screen": lambda text: unstyled(render_brief(poisoned(RUN, text, spared=SPARED))),
    "run": lambda text: render_run(poisoned(RUN, text, spared=SPARED), verbose=True),
    "timeline": lambda text: render_timeline(
        poisoned(
            TIMELINE, text, spared=frozenset(TIMELINE.span) | {"kvm_eoi", *TIMELINE.events[0]}
        ),
        2e9,
        f"QEMU{text}",
    ),
    "list": lambda text: render_list(Discovery((poisoned(VM, text, spared=EVIDENCE),), 3, text)),
    "doctor": lambda text: render_examination(poisoned(EXAMINATION, text, spared=SPARED)),
    "watch": lambda text: render_interval(poisoned(INTERVAL, text)),
    "watch on a screen": lambda text: render_interval(
        poisoned(INTERVAL, text), width=80, height=24
    ),
    "watch of one": lambda text: render_interval(
        poisoned(replace(INTERVAL, vms=INTERVAL.vms[:1]), text)
    ),
    "compare": lambda text: render_comparison(poisoned_comparison(text), every=True),
}
EVIDENCE = frozenset(["debugfs", "syscall", "kvm_entry", "memory_bytes", "tid"])
slow = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def poisoned_comparison(text: str) -> Comparison:
    return poisoned(COMPARISON, text, spared=SPARED)


@pytest.mark.parametrize("name", TERMINAL)
@slow
@given(text=hostile_text)
@example(text="".join(SAMPLES[:9]))
def test_nothing_but_printable_text_for_a_terminal(name: str, text: str) -> None:
    shown = TERMINAL[name](text)
    assert_harmless(shown)


@pytest.mark.parametrize("name", TERMINAL)
def test_the_text_gets_there_at_all(name: str) -> None:
    assert "ZYXW" in TERMINAL[name]("ZYXW").replace("\n", "")


@slow
@given(text=hostile_text)
def test_junit_is_well_formed_and_keeps_its_shape(text: str) -> None:
    written = render_junit([poisoned_comparison(text)], strict=True)
    assert_harmless(written)
    root = ET.fromstring(written.encode())  # noqa: S314 - ours
    usual = ET.fromstring(render_junit([COMPARISON], strict=True))  # noqa: S314
    assert [element.tag for element in root.iter()] == [element.tag for element in usual.iter()]


@slow
@given(text=hostile_text)
def test_csv_runs_nothing_in_a_spreadsheet(text: str) -> None:
    runs = [(f"{text}{i}", poisoned(RUN, text, spared=SPARED)) for i in range(2)]
    written = render_csv(runs)
    assert_harmless(written)
    rows = list(csv.reader(io.StringIO(written)))
    assert len(rows) == 3
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        for cell in row:
            if re.match(r"\s*[-=+@\t\r\uff1d\uff0b\uff0d\uff20]", cell):
                float(cell)


def test_numbers_stay_numbers() -> None:
    written = render_csv([("-2.5", RUN), ("=1+1", RUN)])
    names = [row["run"] for row in csv.DictReader(io.StringIO(written))]
    assert names == ["-2.5", "'=1+1"]


@slow
@given(text=hostile_text)
def test_openmetrics_has_the_same_points(text: str) -> None:
    comparison = render_openmetrics([poisoned_comparison(text)])
    watch = render_watch_openmetrics(poisoned(INTERVAL, text))
    usual = (render_openmetrics([COMPARISON]), render_watch_openmetrics(INTERVAL))
    for written, expected in zip((comparison, watch), usual, strict=True):
        assert_harmless(written)
        assert points(written) == points(expected)


def points(written: str) -> list[tuple[str, float, set[str]]]:
    return [
        (sample.name, sample.value, set(sample.labels))
        for family in text_string_to_metric_families(written)
        for sample in family.samples
    ]


PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@slow
@given(text=hostile_text)
@example(text="".join(SAMPLES[13:19]))
def test_markdown_shows_and_does_nothing(text: str) -> None:
    written = render_comparison(poisoned_comparison(text), every=True, markdown=True)
    assert_harmless(written)
    usual = render_comparison(COMPARISON, every=True, markdown=True)
    assert kinds(written) == kinds(usual)
    for found in inlines(written):
        if found.type == "html_inline":
            assert found.content == "<!-- -->"
        elif found.type == "text":
            assert not re.search(r"@\w|#\d|://|www\.", found.content)


def kinds(written: str) -> list[str]:
    """What is made of the text: blocks, and in them all but plain text."""
    tokens = []
    for block in PARSER.parse(written):
        tokens.append(block.type)
        tokens += [
            inline.type
            for inline in block.children or ()
            if inline.type not in {"text", "html_inline", "text_special"}
        ]
    return tokens


def inlines(written: str) -> list[Any]:
    return [inline for block in PARSER.parse(written) for inline in block.children or ()]


@given(text=hostile_text)
def test_markdown_says_what_was_said(text: str) -> None:
    shown = PARSER.renderInline(markdown(text)).replace("<!-- -->", "")
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, char)
    assert shown.strip() == plain(text, 1000).strip()


STATUS = HelperStatus(
    1, "1.0", Module(loaded=True, version="1.0", srcversion="AB"), "6.1", 2, (0, 1), "x2apic",
    1_000, {"blocked": "no HLT"},
)  # fmt: skip


@slow
@given(text=hostile_text)
def test_what_a_guest_says_of_itself(text: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        _say_line(f"built in the guest: {text}")
        n_lines = 1
        with contextlib.suppress(ValueError):  # that much is refused before it is told
            _tell_status(poisoned(STATUS, text))
            n_lines += 5
    assert n_lines > 1 or not text.isprintable() or len(text) > STATUS_CHARS
    assert_harmless(said.getvalue())
    begun = [line for line in said.getvalue().splitlines() if not line.startswith(" " * 9)]
    assert len(begun) <= n_lines
    if n_lines > 1:
        labels = [line.split(" ", 1)[0] for line in begun[1:]]
        assert labels == ["module", "helper", "guest", "cannot"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@slow
@given(text=hostile_text)
def test_progress_draws_one_line(text: str) -> None:
    terminal = Terminal()
    with ProgressBar(stream=terminal) as bar:
        bar._from_s = 0.0
        bar.show(text, 0.5)
    assert_harmless(terminal.getvalue().replace("\r\x1b[K", ""))
    assert "\n" not in terminal.getvalue()
