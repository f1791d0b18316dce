# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from ipitrace.measure import accounting
from ipitrace.measure.accounting import Account, ProgramAccounts
from ipitrace.measure.tracers import Tracers
from ipitrace.recording.program_costs import Spread
from ipitrace.words.scenarios import Mode

if TYPE_CHECKING:
    from ipitrace.tracer.session import Tracer


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> ProgramAccounts:
    """Of three programs; nothing was accounted yet."""
    monkeypatch.setattr(accounting, "own_cost_ns", lambda: 20.0)
    fds = {"kvm_apic_ipi": 3, "sched_switch": 4, "kvm_eoi": 5}
    modes = (Mode.STAGES, Mode.EVIDENCE)
    tracer = cast("Tracer", SimpleNamespace(program_fds=fds))
    return ProgramAccounts(Tracers(tracer, tracer), modes)


def account(mode: Mode, runs_and_ns: list[tuple[int, int]], name: str = "self") -> Account:
    return Account(name, mode, ipis=10, run_time=np.array(runs_and_ns, np.int64))


STAGES = [(10, 1000), (0, 0), (0, 0)]
EVIDENCE = [(10, 2000), (0, 0), (0, 0)], [(20, 3000), (5, 500), (0, 0)]


def test_costs_are_medians_of_the_repetitions(accounts: ProgramAccounts) -> None:
    accounts.accounts += [account(Mode.STAGES, STAGES), account(Mode.EVIDENCE, EVIDENCE[0])]
    accounts.accounts += [account(Mode.EVIDENCE, EVIDENCE[1]), account(Mode.STAGES, STAGES)]
    found = accounts.result()
    assert found is not None
    assert (found.repetitions, found.own_ns) == (2, 20.0)
    assert list(found.costs["self"]) == ["stages", "evidence"]
    full = found.costs["self"]["evidence"]
    assert list(full.programs) == ["kvm_apic_ipi", "sched_switch"]
    assert full.programs["kvm_apic_ipi"].runs_per_ipi == 1.5
    assert full.programs["kvm_apic_ipi"].ns_per_run == Spread(175.0, 150.0, 200.0)
    assert full.programs["kvm_apic_ipi"].ns_per_ipi == Spread(250.0, 200.0, 300.0)
    # Where it did not run, a run has no length, but an IPI took none of its time.
    assert full.programs["sched_switch"].ns_per_run == Spread(100.0, 100.0, 100.0)
    assert full.programs["sched_switch"].ns_per_ipi == Spread(25.0, 0.0, 50.0)
    assert full.ns_per_ipi == Spread(275.0, 200.0, 350.0)


def test_repetitions_of_a_block_that_was_not_completed_are_left_out(
    accounts: ProgramAccounts,
) -> None:
    accounts.accounts += [account(Mode.STAGES, STAGES), account(Mode.EVIDENCE, EVIDENCE[0])]
    accounts.accounts += [
        account(Mode.EVIDENCE, EVIDENCE[1]),
        account(Mode.EVIDENCE, EVIDENCE[1], "broadcast"),
    ]
    found = accounts.result()
    assert found is not None
    assert list(found.costs) == ["self"]
    assert found.repetitions == 1
    assert found.costs["self"]["evidence"].programs["kvm_apic_ipi"].runs_per_ipi == 1.0


def test_without_a_completed_block_there_are_no_costs(accounts: ProgramAccounts) -> None:
    assert accounts.result() is None
    accounts.accounts.append(account(Mode.EVIDENCE, EVIDENCE[0]))
    assert accounts.result() is None
