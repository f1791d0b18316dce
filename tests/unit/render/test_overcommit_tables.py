# SPDX-License-Identifier: Apache-2.0
"""The tables of scenarios whose vCPUs share CPUs."""

from dataclasses import replace

from runs import made_run, measured_row

from ipitrace.recording.row import Occupant, Overcommit, PerSide, SideWaiting, Summary
from ipitrace.render.page import TextPage
from ipitrace.render.run.overcommit import overcommit_tables
from ipitrace.render.run.tables import render_run

FOUND = Overcommit(
    cpus=(4, 7, 4, 7),
    vcpus_per_cpu=2,
    sides=(
        SideWaiting("sender", 300, None, 0.4, None, (Occupant("idle", "idle", 1.0),)),
        SideWaiting(
            *("target", 300, 0.66, 0.67, Summary(200, 5, 70, 80, 90, 95)),
            (Occupant("vcpu", "vCPU 3", 0.9995), Occupant("process", "tiny", 0.0005)),
        ),
    ),
    deliver_running=Summary(100, 10, 20, 30, 40, 50),
    deliver_waiting=Summary(200, 10, 2000, 3000, 4000, 5000),
    switched_out_s=10.377,
    run_delay_s=10.239,
    ple_exits=None,
    ple_window_updates=PerSide(0.0, 0.25),
    yields_attempted=PerSide(2.0, 0.0),
    yields_successful=PerSide(1.5, 0.0),
)
ABSENT = {"overcommit.ple_exits": "kvm_exit never fired"}


def text_of(found: Overcommit | None, absent: dict[str, str]) -> str:
    row = replace(measured_row(), overcommit=found)
    row = replace(row, absent={**(row.absent or {}), **absent})
    return "\n".join(overcommit_tables([row], TextPage(200)))


def cells(text: str, *words: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line.split()


def test_d_of_both_kinds_of_ipis() -> None:
    text = text_of(FOUND, ABSENT)
    assert cells(text, "running ", "33.3%")[2:] == ["100", "33.3%", "20", "30", "40", "50", "-"]
    line = ["waited", "200", "66.7%", "2000", "3000", "4000", "5000", "70"]
    assert cells(text, "waited ", "2000")[1:] == line
    assert "2 vCPUs on each CPU (4, 7); 66.0% of the IPIs met a target without a CPU" in text
    assert "switched out for 10.377 s, and waited for 10.239 s by the kernel's schedstat" in text


def test_who_ran_instead() -> None:
    text = text_of(FOUND, ABSENT)
    assert cells(text, "vCPU 3")[1:] == ["target", "67.0%", "vCPU", "3", "100.0%"]
    assert cells(text, " idle ")[1:] == ["sender", "40.0%", "idle", "100.0%"]
    assert "tiny" not in text


def test_exits_and_yields_per_ipi() -> None:
    text = text_of(FOUND, ABSENT)
    (line,) = (x for x in text.splitlines() if "2.00 + 0.00" in x)
    assert line.split()[1:] == ["-", "0.00", "+", "0.25", "2.00", "+", "0.00", "1.50", "+", "0.00"]
    assert "PLE exits: not known, kvm_exit never fired" in text


def test_untraced() -> None:
    bare = replace(FOUND, sides=None, deliver_running=None, deliver_waiting=None)
    text = text_of(bare, {**ABSENT, "overcommit.sides": "nothing was traced"})
    assert "D by the state of the target: not known, nothing was traced" in text
    assert "Who ran instead" not in text


def test_other_scenarios_have_no_such_table() -> None:
    assert text_of(None, {}) == ""
    assert "Pause-loop" not in render_run(made_run())


def test_names_of_processes_are_made_plain() -> None:
    evil = SideWaiting("target", 1, 1.0, 1.0, None, (Occupant("process", "a\x1b[2Jb", 1.0),))
    row = replace(measured_row(), overcommit=replace(FOUND, sides=(evil,)), absent=ABSENT)
    text = render_run(made_run(scenarios=(row,)), width=200)
    assert "\x1b" not in text
    assert "Who ran instead" in text
