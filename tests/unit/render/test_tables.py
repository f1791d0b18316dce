# SPDX-License-Identifier: Apache-2.0
"""What a person reads; figures are checked, spaces are not."""

import re
from dataclasses import replace

import pytest
from checks import assert_sound
from runs import made_program_costs, made_run, measured_row, unsupported_row
from strategies import left_alone, receipts, sends, storm

from ipitrace.recording.host import KvmProcess, NeighboursResult, PinningResult
from ipitrace.recording.result import Disturbance, Losses, RunLimits, RunResult
from ipitrace.recording.row import ExitsPerIpi
from ipitrace.render.run.tables import render_run
from ipitrace.render.scenarios import Offer, render_scenarios
from ipitrace.storm.micro.driver import unsupported
from ipitrace.summary import Measured, summarise_scenario
from ipitrace.words.scenarios import DEFAULT_SCENARIOS, SCENARIOS

UNTRACED = {"observer": None, "observer_absent": "nothing was traced (--no-trace)"}


def rendered(run: RunResult, *, verbose: bool = False) -> str:
    assert_sound(run.to_dict())
    text = render_run(run, verbose=verbose)
    assert text.endswith("\n")
    assert "None" not in text
    assert "nan" not in text
    return text


def flat(text: str) -> str:
    """The text without the line breaks that depend on the width."""
    return " ".join(text.split())


def line_of(text: str, *words: str) -> list[str]:
    """The cells of the first line that begins with these words."""
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if tuple(cells[: len(words)]) == words:
            return cells
    raise AssertionError(f"no line {words} in\n{text}")


def test_one_difference_has_no_interval() -> None:
    run = made_run()
    assert run.observer is not None
    once = replace(run, observer=replace(run.observer, repetitions=1, confidence=0.0))
    observer = rendered(once).partition("Observer cost")[2]
    assert "from one difference between repetitions that ran in turn, which" in flat(observer)
    assert line_of(observer, "unicast-running", "S")[2:] == [
        *("20", "+2 (+10.0%)", "-", "+5 (+25.0%)", "-"),
    ]


def test_a_whole_run() -> None:
    text = rendered(made_run())
    assert "a processor, 2 CPUs" in text
    assert "2 vCPUs" in text
    assert "pinned to CPUs 0, 1" in text
    assert "2000.000 MHz +- 50 Hz" in text
    assert "40 cycles (20 ns) for one reading" in text
    assert "60 cycles (30 ns) for a host event" in flat(text)
    # 20 cycles at 2 GHz are 10 ns.
    assert line_of(text, "unicast-running", "S")[2:4] == ["20", "10"]
    assert line_of(text, "3 sent", "D")[2:4] == ["50", "25"]
    assert line_of(text, "3 delivered", "R")[2:4] == ["200", "100"]
    assert "source: kvm_exit tracepoint" in text
    assert "MSR_WRITE" in text
    assert line_of(text, "kvm_apic_ipi")[1] == "1.00 + 0"
    observer = text.partition("Observer cost")[2]
    assert "96.9% interval of 6 differences" in flat(observer)
    assert line_of(observer, "unicast-running", "S")[2:] == [
        *("20", "+2 (+10.0%)", "[+1, +4]", "+5 (+25.0%)", "[+3, +7]"),
    ]
    assert "0 of 100 events lost in ring overruns" in text
    assert "DOUBT" not in text
    assert "Not measured" not in text


def test_the_account_of_programs_has_a_table_for_each_mode() -> None:
    text = rendered(made_run(program_costs=made_program_costs()))
    _, stages, evidence = text.split("Probe costs: ")
    for mode, table in (("stages", stages), ("evidence", evidence)):
        said = flat(table)
        assert f"in mode {mode}" in said
        assert "medians of 6 repetitions and their range" in said
        assert "includes 21 ns of the accounting itself" in said
        assert line_of(table, "unicast-running", "kvm_apic_ipi")[2:] == [
            *("2.25", "90", "[80, 120]", "203", "[180, 270]"),
        ]
        assert line_of(table, "all programs")[1:] == ["-", "-", "-", "203", "[180, 270]"]
    assert "Probe costs" not in rendered(made_run())


def test_verbose_says_what_was_watched() -> None:
    text = rendered(made_run(), verbose=True)
    assert "kvm_apic_ipi (raw)" in text
    assert "kvm_exit: tracefs is not mounted" in text
    assert "0" * 64 in text


def test_without_tracing() -> None:
    text = rendered(made_run(**UNTRACED, scenarios=(measured_row(traced=False),)))
    assert "not counted, nothing was traced (--no-trace)" in text
    assert "Observer cost" not in text
    assert "ring overruns" not in text


def test_exits_that_nobody_counted_have_a_reason_and_no_source() -> None:
    why = "neither kvm_exit nor KVM_GET_STATS_FD counts exits on this host"
    counted = measured_row()
    blind = replace(
        measured_row("unicast-halted"),
        exits=ExitsPerIpi(None, None, None),
        absent={"exits.source": why},
    )
    text = render_run(made_run(scenarios=(blind,)))
    assert f"VM exits per IPI: not counted, {why}\n" in text
    assert "source:" not in text
    text = render_run(made_run(scenarios=(counted, blind)))
    assert "VM exits per IPI (source: kvm_exit tracepoint);\n" in text
    assert f"not counted in unicast-halted: {why}\n" in text
    assert line_of(text, "unicast-running", "sender")


def test_self_has_one_line_of_exits() -> None:
    text = rendered(made_run(scenarios=(measured_row("self"),)))
    exits = text.partition("VM exits")[2].partition("\n\n")[0]
    lines = [line for line in exits.splitlines() if line.startswith("self") and "sender" in line]
    assert len(lines) == 1
    assert not re.search(r"^self +target", exits, re.MULTILINE)


def test_what_could_not_be_measured_is_told() -> None:
    text = rendered(made_run(scenarios=(measured_row(), unsupported_row("ring"))))
    assert re.search(r"ring: the guest is too small", text)


def test_a_partial_run_says_what_ended_it() -> None:
    text = rendered(made_run(complete=False, failure="Interrupted."))
    assert "Interrupted." in text
    assert line_of(text, "unicast-running", "S")


@pytest.mark.parametrize("tracing", [{}, UNTRACED])
def test_a_run_that_ended_before_its_first_row(tracing: dict[str, None]) -> None:
    text = rendered(made_run(complete=False, failure="Interrupted.", scenarios=(), **tracing))
    assert "Interrupted." in text
    assert "Cycles per IPI" not in text


def test_doubts_are_shown() -> None:
    text = rendered(made_run(untrustworthy=("7 of 9 host events were lost",)))
    assert "7 of 9 host events were lost" in text
    assert "do not rely on these numbers" in text


def test_disturbances_and_limits_are_shown() -> None:
    moved = Disturbance("moved", "vCPU 1 was moved", worthless=True, repetition=3)
    came = Disturbance("neighbour", "a VM came", worthless=False)
    limits = RunLimits(10_000.0, 60.0, by_default=True)
    text = render_run(made_run(disturbances=(moved, came), limits=limits))
    assert "pinned to CPUs 0, 1, but not all the time (see below)" in text
    assert "\nnote   a VM came\n" in text
    assert "note   vCPU 1 was moved" not in text  # it is a doubt
    assert (
        "limits at most 10000 sends per second (--max-rate) and 60 s of storms (--max-time); "
        "the default for a VM that ipitrace did not start" in flat(text)
    )
    assert "limits" not in render_run(made_run())


def test_where_no_tracepoint_fired_there_is_no_table_of_them() -> None:
    row = replace(measured_row(), events_per_ipi={})
    assert "Tracepoints per IPI, sender + target\nnone fired\n" in rendered(
        made_run(scenarios=(row,))
    )


def test_losses_are_shown() -> None:
    losses = Losses(1000, {"kvm_eoi": 30, "kvm_msr": 12}, {"kvm_eoi": 5, "kvm_msr": None}, 3, 0)
    text = rendered(made_run(losses=losses))
    assert "42 of 1000 events lost in ring overruns" in text
    assert "5 recursion misses" in text
    assert "1 program" in flat(text)
    assert "3 incomplete IPIs" in text


def test_coalesced_deliveries_are_shown() -> None:
    row = replace(measured_row(), coalesced=4)
    assert "4 deliveries coalesced" in rendered(made_run(scenarios=(row,)))


def test_overcommitment_and_neighbours_are_shown() -> None:
    host = replace(
        made_run().host,
        pinning=PinningResult(overcommitted=True, why="9 vCPUs do not fit on 2 allowed CPUs"),
        neighbours=NeighboursResult(kvm_processes=(KvmProcess(4711, "qemu-system"),)),
    )
    text = rendered(made_run(host=host))
    assert "9 vCPUs do not fit on 2 allowed CPUs" in flat(text)
    assert "qemu-system (pid 4711)" in text


def test_an_unpinned_guest_and_an_unknown_clock() -> None:
    unknown = replace(
        made_run().clock,
        **dict.fromkeys(("tsc_hz", "tsc_error_hz", "source", "kvm_tsc_khz"), None),
        **dict.fromkeys(("guest_tsc_offset", "half_width_cycles", "half_width_ns"), None),
        **dict.fromkeys(("bound_cycles", "bound_ns", "drift_ppm", "drift_noise_ppm"), None),
    )
    guest = replace(made_run().guest, pinned_cpus=None)
    text = rendered(made_run(clock=unknown, guest=guest))
    assert "not pinned" in text
    assert "MHz" not in text
    assert line_of(text, "unicast-running", "S")[2:4] == ["20", "-"]


def test_nothing_delivered() -> None:
    why = {"deliver_cycles": "no handler ran", "round_trip_cycles": "none acknowledged"}
    row = measured_row()
    row = replace(
        row,
        **dict.fromkeys(why, None),
        delivered=0,
        incomplete=3,
        absent={**(row.absent or {}), **why},
    )
    observer = replace(made_run().observer, costs={})  # type: ignore[type-var]
    text = rendered(made_run(scenarios=(row,), observer=observer))
    for cells in (("3 sent", "D"), ("0 delivered", "R")):
        assert set(line_of(text, *cells)[2:]) == {"-"}


def test_the_table_of_scenarios() -> None:
    text = render_scenarios([Offer(s, unsupported(s)) for s in SCENARIOS], width=200)
    for scenario in SCENARIOS:
        cells = line_of(text, scenario.name)
        runs = "no" if unsupported(scenario) else "yes"
        assert cells[1] == ("default" if scenario.name in DEFAULT_SCENARIOS else runs)
        assert (unsupported(scenario) or "") in cells[2]


def test_interrupts_on_cpus_that_never_ran_the_vm_are_told() -> None:
    counted = {
        "PIN": {"0": 3, "1": 0, "2": 200},
        "RES": {"0": 1, "1": 0, "2": 9},
        "NMI": dict.fromkeys("012", 0),
    }
    row = measured_row()
    absent = {name: why for name, why in (row.absent or {}).items() if name != "host_interrupts"}
    row = replace(row, host_interrupts=counted, absent=absent)
    run = made_run()
    text = rendered(replace(run, scenarios=(row,)))
    assert "notifications on CPUs that never ran this VM: PIN 200 on CPU 2" in flat(text)
    assert "RES 9" not in text
    row = replace(row, send_method="passthrough")
    text = rendered(replace(run, scenarios=(row,)))
    assert "the host's own included: RES 9 on CPU 2" in flat(text)
    assert "NMI" not in text


def test_several_targets_have_a_last_one_and_a_table_of_vcpus() -> None:
    log = sends([(1000, 1010, 1100), (2000, 2020, 2200), (3000, 3030, 3300)])
    handled = [receipts([]), receipts([1040, 2050, 3060]), receipts([1050, 2060, 3250])]
    targets = (1, 2)
    repetition = left_alone(storm(log, handled), targets)
    (scenario,) = (s for s in SCENARIOS if s.name == "broadcast")
    row = summarise_scenario(Measured(scenario, targets, 500, 100, 1, (repetition,)))
    run = made_run(scenarios=(measured_row(traced=False), row), **UNTRACED)
    text = rendered(run)
    assert "last deliver (D last: until all targets have it)" in flat(text)
    first = text.partition("Cycles of each vCPU")[0]
    assert line_of(first, "6 delivered", "D last")[2:4] == ["60", "30"]
    vcpus = text.partition("Cycles of each vCPU")[2]
    assert line_of(vcpus, "broadcast", "0")[2:] == ["20", "-", "-", "-", "-", "200"]
    assert line_of(vcpus, "broadcast", "2")[2:] == ["-", "60", "250", "250", "250", "-"]
    alone = rendered(made_run(scenarios=(measured_row(traced=False),), **UNTRACED))
    assert "D last" not in alone
    assert "Cycles of each vCPU" not in alone
