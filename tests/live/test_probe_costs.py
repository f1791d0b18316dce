# SPDX-License-Identifier: Apache-2.0
"""The kernel's account of BPF programs: real programs, and `ipitrace run --probe-costs`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checks import assert_sound
from commands import ipi
from least_rights import LOOK, TRACE, folder_of_theirs, run
from run_results import assert_fine, assert_told, run_json

from ipitrace.base.errors import ExitCode, HostError, InterruptedRunError
from ipitrace.measure.guests import micro_guest
from ipitrace.measure.request import RunRequest
from ipitrace.measure.run import run as run_pipeline
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.tracer import run_time
from ipitrace.tracer.run_time import SYSCTL, accounting, own_cost_ns, read_run_time
from ipitrace.tracer.session import Tracer
from ipitrace.words.scenarios import select_scenarios

pytestmark = pytest.mark.live("root", "bpf")

FEW = ("--scenario", "self", "--scenario", "unicast-running", "--count", "120")


@pytest.fixture(scope="module")
def switching() -> Iterator[Tracer]:
    """An attached program that runs at each context switch of the host."""
    with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
        tracer.attach()
        yield tracer


def runs_of_some_switches(tracer: Tracer) -> tuple[int, int]:
    """Runs and ns that the kernel accounts for the program while this process sleeps."""
    fds = tuple(tracer.program_fds.values())
    before = read_run_time(fds)
    subprocess.run(["sleep", "0.1"], check=True)
    ((runs, ns),) = read_run_time(fds) - before
    return int(runs), int(ns)


def test_the_kernel_accounts_only_where_it_is_asked_to(switching: Tracer) -> None:
    if int(SYSCTL.read_text()):
        pytest.skip("kernel.bpf_stats_enabled is on here: the kernel always accounts")
    assert runs_of_some_switches(switching) == (0, 0)
    with accounting():
        runs, ns = runs_of_some_switches(switching)
    assert runs >= 2
    assert ns > 0
    assert runs_of_some_switches(switching) == (0, 0)


def test_the_sysctl_is_used_where_the_command_is_missing_and_set_back(
    switching: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown command is refused with EINVAL, as kernels before 5.8 refuse this one."""
    before = SYSCTL.read_text()
    monkeypatch.setattr(run_time, "_ENABLE_STATS", 10_000)
    with accounting():
        assert int(SYSCTL.read_text()) == 1
        assert runs_of_some_switches(switching)[0] >= 2
    assert SYSCTL.read_text() == before
    with pytest.raises(KeyError), accounting():
        raise KeyError
    assert SYSCTL.read_text() == before


def test_the_account_ends_with_a_process_that_is_killed(switching: Tracer) -> None:
    if int(SYSCTL.read_text()):
        pytest.skip("kernel.bpf_stats_enabled is on here: the kernel always accounts")
    program = (
        "import signal\nfrom ipitrace.tracer.run_time import accounting\n"
        "with accounting():\n    print('on', flush=True)\n    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        assert runs_of_some_switches(switching)[0] >= 2
        process.send_signal(signal.SIGKILL)
    assert runs_of_some_switches(switching) == (0, 0)


def test_the_accounts_own_cost_is_measured() -> None:
    assert 0 < own_cost_ns() < 10_000


def test_a_kernel_that_does_not_account_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if int(SYSCTL.read_text()):
        pytest.skip("kernel.bpf_stats_enabled is on here: the kernel always accounts")
    monkeypatch.setattr(run_time, "accounting", contextlib.nullcontext)
    with pytest.raises(HostError) as raised:
        own_cost_ns()
    assert raised.value.message == "The kernel accounts for 0 of 1000 runs of a BPF program."


def test_a_descriptor_that_is_no_program_has_no_account(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(HostError) as raised:
        read_run_time([file.fileno()])
    assert "no account of BPF programs" in raised.value.message


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A run with --probe-costs, and what it printed."""
    folder = tmp_path_factory.mktemp("accounted")
    done = ipi("run", "--probe-costs", *FEW, "-o", "here", cwd=folder)
    assert_fine(done)
    return run_json(folder / "here"), done.stdout


def test_a_run_accounts_for_each_program_that_fires(accounted: tuple[dict[str, Any], str]) -> None:
    run, _ = accounted
    found = run["program_costs"]
    assert found["repetitions"] == 6
    assert found["own_ns"] > 0
    assert set(found["costs"]) == {"self", "unicast-running"}
    for row in run["scenarios"]:
        by_mode = found["costs"][row["name"]]
        assert list(by_mode) == ["stages", "evidence"]
        for name, mode in by_mode.items():
            programs = mode["programs"]
            attached = run["observer"]["stage_hooks" if name == "stages" else "hooks"]
            for event, counted in row["events_per_ipi"].items():
                if event not in attached:
                    continue
                # A program also runs for threads that it then ignores.
                least = counted["sender"] + counted["target"]
                if least >= 1:
                    assert programs[event]["runs_per_ipi"] >= 0.9 * least
            for cost in programs.values():
                each, ipi_ns = cost["ns_per_run"], cost["ns_per_ipi"]
                assert 0 < each["least"] <= each["median"] <= each["most"]
                assert 0 <= ipi_ns["least"] <= ipi_ns["median"] <= ipi_ns["most"]
            most = [cost["ns_per_ipi"]["most"] for cost in programs.values()]
            assert max(most) <= mode["ns_per_ipi"]["most"] <= sum(most) * 1.001


def test_repetitions_with_accounting_are_in_no_other_figure(
    accounted: tuple[dict[str, Any], str],
) -> None:
    run, _ = accounted
    for row in run["scenarios"]:
        assert row["sent"] == 120
        assert row["repetitions"] == 6
        modes = [figures["mode"] for figures in row["repetition_figures"]]
        assert sorted(modes) == sorted(["off", "stages", "evidence"] * 6)
    assert run["tables"]["guest_ipis"]["rows"] == 2 * 3 * 120


def test_the_tables_name_each_program(accounted: tuple[dict[str, Any], str]) -> None:
    run, printed = accounted
    for mode in ("stages", "evidence"):
        _, found, rest = printed.partition("Probe costs: the kernel's account of each BPF program")
        assert found
        printed = rest
        table = rest.partition("\n\n")[0]
        assert f"in mode {mode}" in " ".join(table.split())
        assert table.count("all programs") == 2
        for event in run["program_costs"]["costs"]["self"][mode]["programs"]:
            assert event in table


@pytest.mark.usefixtures("host_is_left_as_it_was")
def test_without_the_option_nothing_is_accounted(tmp_path: Path) -> None:
    done = ipi("run", *FEW, "-o", "here", cwd=tmp_path)
    assert_fine(done)
    assert "program_costs" not in run_json(tmp_path / "here")
    assert "Probe costs" not in done.stdout


@pytest.mark.live("kvm")
def test_costs_of_programs_that_are_not_attached_cannot_be_asked_for(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", "--probe-costs", *FEW, cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, "--no-trace attaches none", "Leave one of the two out")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_counts_the_additional_repetitions(tmp_path: Path) -> None:
    plain = ipi("run", "--dry-run", *FEW, cwd=tmp_path)
    done = ipi("run", "--dry-run", "--probe-costs", *FEW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "(off, stages, evidence, stages accounted, evidence accounted)" in words
    assert "60 storms" in words, words
    assert "36 storms" in " ".join(plain.stdout.split()), plain.stdout


def test_the_kernels_account_needs_cap_sys_admin() -> None:
    words = ("run", "--probe-costs", "--scenario", "self", "--count", "12", "--repeat", "1")
    with folder_of_theirs() as folder:
        where = ("-o", str(folder / "here"))
        done = run(*words, *where, capabilities=(*TRACE, *LOOK))
        assert_told(done, ExitCode.ENVIRONMENT, "Operation not permitted", "CAP_SYS_ADMIN")
        assert not list(folder.iterdir())
        done = run(*words, *where, capabilities=(*TRACE, *LOOK, "sys_admin"))
        assert done.returncode == 0, done.stderr
        assert "Probe costs" in done.stdout


class Discarding:
    """A sink that keeps nothing."""

    def append(self, table: str, columns: object, meanings: object) -> None:
        pass


REQUEST = RunRequest(
    select_scenarios(["self"]), 24, None, trace=True, repeat=2, seed=1, probe_costs=True
)


def test_a_guest_without_marks_is_accounted_from_before_its_storm_to_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Linux guests are, in which no thread of ours knows when a storm begins."""
    run_marked = MicroGuest.run

    def run_unmarked(guest: MicroGuest, request: StormRequest, hooks: Hooks) -> Storm:
        return run_marked(guest, request, replace(hooks, mark=lambda: None))

    monkeypatch.setattr(MicroGuest, "run", run_unmarked)
    result, failure = run_pipeline(
        REQUEST, micro_guest(2), Discarding(), lambda _what, _share: None
    )
    assert failure is None
    found = result.program_costs
    assert found is not None
    assert "warm-up included" in found.method
    assert 0.9 < found.costs["self"]["evidence"].programs["kvm_apic_ipi"].runs_per_ipi < 1.5


def test_an_interruption_keeps_what_was_measured_before() -> None:
    """Three of five repetitions have no accounting; the first block with it is completed."""
    shares: list[float] = []

    def interrupt(_scenario: str, share: float) -> None:
        shares.append(share)
        if share > 0.85:
            raise KeyboardInterrupt

    request = replace(REQUEST, count=2000)
    result, failure = run_pipeline(request, micro_guest(2), Discarding(), interrupt)
    assert isinstance(failure, InterruptedRunError)
    assert (result.complete, result.failure) == (False, "Interrupted.")
    assert shares == sorted(shares)
    (row,) = result.scenarios
    assert (row.sent, row.repetitions) == (2000, 2)
    assert result.program_costs is not None
    assert result.program_costs.repetitions == 1
    assert_sound(json.loads(result.to_json()))
    if not int(SYSCTL.read_text()):
        with Tracer.load(pid=os.getpid(), n_vcpus=1, only=["sched_switch"]) as tracer:
            tracer.attach()
            assert runs_of_some_switches(tracer) == (0, 0)
